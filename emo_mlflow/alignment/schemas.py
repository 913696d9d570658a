"""The columns of an alignment's overlap.parquet, which `compare` reads. Writer, reader's checks and docs/align.md are made from these."""

from __future__ import annotations

from emo_mlflow.common.columns import NUMBER, TEXT, WHOLE, Declared, column

_MEAN = "mean squared cosine"
OVERLAP = Declared(
    "a pair of layers, an emotion and a rank",
    (
        column("model_a", TEXT, "the model whose subspaces are mapped"),
        column("model_b", TEXT, "the model that they are mapped to"),
        column("layer_a", WHOLE, "block of model A, from 0"),
        column("layer_b", WHOLE, "block of model B, from 0"),
        column("depth_a", NUMBER, "relative depth in model A: 0 before the first block, 1 after the last", "share of the blocks"),
        column("depth_b", NUMBER, "relative depth in model B", "share of the blocks"),
        column("emotion", TEXT, "whose subspaces they are"),
        column("k", WHOLE, "rank of both subspaces", "dimensions"),
        column("map", TEXT, "`procrustes` or `ridge`: the map that `overlap` is after"),
        column("overlap", NUMBER, "overlap of A's mapped subspace with B's, after that map", _MEAN),
        column("overlap_before", NUMBER, "the same with the coordinates as they are, without a map", _MEAN),
        column("overlap_procrustes", NUMBER, "overlap after the map `procrustes`", _MEAN),
        column("overlap_ridge", NUMBER, "overlap after the map `ridge`", _MEAN),
        column("ceiling", NUMBER, "overlap of B's subspaces from two halves of its own texts", _MEAN),
        column("null_mean", NUMBER, "mean overlap of random subspaces", _MEAN),
        column("null_q95", NUMBER, "95% quantile of the overlaps of random subspaces", _MEAN),
        column("null_p", NUMBER, "share of random subspaces that overlap as much, the observed one counted in", "p-value"),
        column("permuted_mean", NUMBER, "mean overlap after A's labels were shuffled", _MEAN),
        column("permuted_q95", NUMBER, "95% quantile of the overlaps after A's labels were shuffled", _MEAN),
        column("permuted_p", NUMBER, "share of shuffles that overlap as much, the observed one counted in", "p-value"),
    ),
    key=("layer_a", "layer_b", "emotion", "k"),
)

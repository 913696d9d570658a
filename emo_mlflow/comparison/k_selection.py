"""How many dimensions of an emotion two models share: overlap of subspaces against k, beside random subspaces."""

from __future__ import annotations

import numpy as np
import pandas as pd

from emo_mlflow.errors import UserError
from emo_mlflow.statistics import paired_effects
from emo_mlflow.types import N_BOOTSTRAP

GROUP = ["model_a", "model_b", "emotion", "k"]
NEEDED = [*GROUP, "layer_a", "layer_b", "overlap", "null_mean", "null_q95"]


def k_selection(overlap: pd.DataFrame, n_bootstrap: int = N_BOOTSTRAP, seed: int = 0) -> pd.DataFrame:
    """Overlap over pairs of layers, a row per pair of models, emotion and k.

    Args:
        overlap: an alignment's overlap.parquet: NEEDED's columns, a row per pair of layers and k; null_mean and
            null_q95 are of random subspaces of the same dimensions.

    Returns:
        GROUP; n (pairs of layers), mean_overlap, null_mean, null_q95 (means over them), excess = mean_overlap -
        null_mean with its BCa interval over pairs of layers (low, high), share_above_null (pairs above their
        null_q95), chosen: the k with the largest excess of its models and emotion, if its interval is above 0.

    Raises:
        UserError: for a table that lacks a column.
    """
    if missing := [column for column in NEEDED if column not in overlap.columns]:
        raise UserError(f"the alignment's overlap.parquet has no column {missing[0]!r}: make the alignment again")
    rows = []
    for key, group in overlap.groupby(GROUP, sort=False):
        null, own = (group[[column]].to_numpy(float) for column in ("null_mean", "overlap"))
        found = paired_effects(null, own, n_bootstrap, seed).iloc[0]
        rows.append(
            {
                **dict(zip(GROUP, key, strict=True)),
                "n": int(found["n"]),
                "mean_overlap": found["mean_patched"],
                "null_mean": found["mean_baseline"],
                "null_q95": group["null_q95"].mean(),
                "excess": found["mean_diff"],
                "low": found["diff_bca_low"],
                "high": found["diff_bca_high"],
                "share_above_null": float((group["overlap"] > group["null_q95"]).mean()),
            }
        )
    table = pd.DataFrame(
        rows,
        columns=[*GROUP, "n", "mean_overlap", "null_mean", "null_q95", "excess", "low", "high", "share_above_null"],
    )
    best = table.groupby(GROUP[:3])["excess"].transform("max") if len(table) else table["excess"]
    return table.assign(chosen=np.isclose(table["excess"], best) & (table["low"] > 0))

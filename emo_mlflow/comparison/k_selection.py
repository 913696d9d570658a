"""How many dimensions of an emotion two models share: overlap of subspaces against k, beside random subspaces."""

from __future__ import annotations

import pandas as pd

from emo_mlflow.errors import UserError
from emo_mlflow.statistics import grid_mean
from emo_mlflow.statistics.moments import Floats

PAIR = ["model_a", "model_b", "emotion"]
GROUP = [*PAIR, "k"]
NEEDED = [*GROUP, "layer_a", "layer_b", "overlap", "null_mean", "null_q95"]
FOUND = ["n", "mean_overlap", "null_mean", "null_q95", "excess", "low", "high", "share_above_null", "chosen"]


def k_selection(overlap: pd.DataFrame) -> pd.DataFrame:
    """Overlap over pairs of layers, a row per pair of models, emotion and k.

    Args:
        overlap: an alignment's overlap.parquet: NEEDED's columns, a row per pair of layers and k; null_mean and
            null_q95 are of random subspaces of the same dimensions.

    Returns:
        GROUP; n (pairs of layers), mean_overlap, null_mean, null_q95 (means over them), excess = mean_overlap -
        null_mean with its 95% interval over both models' layers (low, high; `grid_mean`), share_above_null (pairs above their
        null_q95), chosen: the smallest k whose excess is above 0 and beyond which it does not grow: the interval of no larger
        k's excess minus its own is above 0.

    Raises:
        UserError: for a table that lacks a column.
    """
    if missing := [column for column in NEEDED if column not in overlap.columns]:
        raise UserError(f"the alignment's overlap.parquet has no column {missing[0]!r}: make the alignment again")
    rows = []
    for key, group in overlap.groupby(PAIR, sort=False):
        by_k = {int(str(k)): part for k, part in group.groupby("k")}
        grids = {k: _excess(part) for k, part in by_k.items()}
        chosen = _chosen(grids)
        for k, part in by_k.items():
            excess, low, high = grid_mean(grids[k])
            means = [float(part[column].mean()) for column in ("overlap", "null_mean", "null_q95")]
            above = float((part["overlap"] > part["null_q95"]).mean())
            rows.append([*key, k, len(part), *means, excess, low, high, above, k == chosen])
    return pd.DataFrame(rows, columns=[*GROUP, *FOUND])


def _excess(part: pd.DataFrame) -> Floats:
    """Overlap above that of random subspaces, [layers of a, layers of b]."""
    above = part.assign(excess=part["overlap"] - part["null_mean"])
    return above.pivot_table(index="layer_a", columns="layer_b", values="excess").to_numpy(float)


def _chosen(grids: dict[int, Floats]) -> int | None:
    for k, own in grids.items():
        grows = any(grid_mean(other - own)[1] > 0 for larger, other in grids.items() if larger > k)
        if grid_mean(own)[1] > 0 and not grows:
            return k
    return None

"""Over strength: how scores move with alpha."""

from __future__ import annotations

import numpy as np
import pandas as pd

from emo_mlflow.comparison.families import with_corrections
from emo_mlflow.comparison.responses import Responses
from emo_mlflow.statistics import paired_effects, prompt_slopes, prompt_spearman
from emo_mlflow.steering.operations import operation

SERIES = ["emotion", "layer", "head", "scope", "patch_window"]


def dose(sweeps: list[Responses], family: tuple[str, ...], n_bootstrap: int, seed: int) -> pd.DataFrame:
    """A row per (model, SERIES, metric) of sweeps over two strengths or more.

    The baseline is strength 0 where the operation says so: where directions are added. Clamping to 0 is not the baseline.

    Returns:
        alphas (their list as text); n; slope, in score per unit of alpha, with its interval slope_low, slope_high, p (sign
        flips) and p_t: of prompts' own least-squares slopes; spearman with spearman_low, spearman_high: of the rank
        correlations of the spearman_n prompts whose score is not the same at every alpha; corrections of p.
    """
    parts = [part for sweep in sweeps for part in _of_sweep(sweep, n_bootstrap, seed)]
    if not parts:
        return pd.DataFrame(columns=["model", *SERIES, "metric", "slope", "spearman", "p"])
    return with_corrections(pd.concat(parts, ignore_index=True), "p", family)


def _of_sweep(sweep: Responses, n_bootstrap: int, seed: int) -> list[pd.DataFrame]:
    conditions = sweep.conditions.iloc[sweep.rows("emotion")]
    firsts, doses, slopes, correlations = [], [], [], []
    for _, rows in conditions.groupby(SERIES, dropna=False, sort=False):
        if rows["alpha"].nunique() < 2:
            continue
        rows = rows.sort_values("alpha")
        alphas, scores = rows["alpha"].to_numpy(float), sweep.after[rows.index]
        if operation(sweep.source.config["operation"]).zero_is_baseline and 0 not in alphas:
            baseline = np.nanmean(sweep.before[rows.index], axis=0, keepdims=True)
            alphas, scores = np.append(alphas, 0.0), np.concatenate([scores, baseline])
        slopes.append(prompt_slopes(alphas, scores))
        correlations.append(prompt_spearman(alphas, scores))
        firsts.append(rows.index[0])
        doses.append(", ".join(f"{alpha:g}" for alpha in np.sort(alphas)))
    if not firsts:
        return []
    rise, order = (
        _mean_over_prompts(np.concatenate(parts, axis=1), n_bootstrap, seed) for parts in (slopes, correlations)
    )
    table = conditions.loc[firsts, SERIES].assign(alphas=doses)
    table = table.loc[table.index.repeat(len(sweep.metrics))].reset_index(drop=True)
    table.insert(0, "model", sweep.source.label)
    table["metric"] = np.tile(np.array(sweep.metrics, object), len(firsts))
    names = {"mean_diff": "", "diff_low": "_low", "diff_high": "_high"}
    columns = [
        part[list(names)].rename(columns={old: name + new for old, new in names.items()})
        for part, name in ((rise, "slope"), (order, "spearman"))
    ]
    tests = rise[["p_permutation", "p_t"]].rename(columns={"p_permutation": "p"})
    number = order[["n"]].rename(columns={"n": "spearman_n"})
    return [pd.concat([table, rise[["n"]], columns[0], tests, number, columns[1]], axis=1)]


def _mean_over_prompts(values: np.ndarray, n_bootstrap: int, seed: int) -> pd.DataFrame:
    return paired_effects(np.zeros_like(values), values, n_bootstrap, seed)

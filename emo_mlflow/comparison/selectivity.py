"""Did a direction raise the emotion that it stands for, and what else?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from emo_mlflow.comparison.families import with_corrections
from emo_mlflow.comparison.responses import SETTING, Responses
from emo_mlflow.scoring.targets import target_metric
from emo_mlflow.statistics import paired_effects, specific_effects
from emo_mlflow.statistics.moments import Floats


def selectivity(sweeps: list[Responses], family: tuple[str, ...], n_bootstrap: int, seed: int) -> pd.DataFrame:
    """The change of the target label against that of the scorer's other labels, a row per condition with a target.

    Returns:
        model, SETTING, depth; target, target_effect, others, others_effect (mean change of the `others` other labels);
        selectivity = target_effect - others_effect with its interval (low, high), p (sign flips), p_t, and corrections of p;
        n_draws, draws_mean, draws_min, draws_max: the same of its random directions, and p_random, the direction's place among
        them (one-sided, as in `specific_effects`): any perturbation can move one label more than the mean of the rest;
        strongest_other, strongest_other_effect; target_rank, 1 if no other label's mean changed as much in size.
    """
    parts = [_of_sweep(sweep, n_bootstrap, seed) for sweep in sweeps]
    parts = [part for part in parts if len(part)]
    if not parts:
        return pd.DataFrame(columns=["model", *SETTING, "target", "p"])
    return with_corrections(pd.concat(parts, ignore_index=True), "p", family)


def _of_sweep(sweep: Responses, n_bootstrap: int, seed: int) -> pd.DataFrame:
    conditions = sweep.conditions.iloc[sweep.rows("emotion")]
    targets = {emotion: target_metric(emotion, sweep.metrics) for emotion in conditions["emotion"].unique()}
    conditions = conditions[conditions["emotion"].map(targets).notna()]
    if not len(conditions):
        return pd.DataFrame()
    table, own, rest, random = [], [], [], []
    signs = sweep.source.signs(conditions)
    for position, emotion, sign in zip(conditions.index, conditions["emotion"], signs, strict=True):
        target = targets[emotion]
        assert target is not None
        others = _others(target, sweep.metrics)
        change, draws = (sweep.change[rows].astype(float) for rows in (position, sweep.draws[position]))
        mine, theirs = _of_target(change, sweep.metric(target), others)
        table.append({"target": target, **_means(change, sweep, target, others)})
        own.append(mine)
        rest.append(theirs)
        their_own, their_rest = _of_target(draws, sweep.metric(target), others)
        random.append(specific_effects((mine - theirs)[:, None], (their_own - their_rest)[:, :, None], sign))
    found = paired_effects(np.stack(rest, axis=1), np.stack(own, axis=1), n_bootstrap, seed)
    keys = conditions[["condition_id", *SETTING]].reset_index(drop=True)
    keys.insert(0, "model", sweep.source.label)
    keys["depth"] = sweep.source.depth(keys["layer"])
    renamed = {
        "n": "n",
        "mean_baseline": "others_effect",
        "mean_diff": "selectivity",
        "diff_low": "low",
        "diff_high": "high",
        "p_permutation": "p",
        "p_t": "p_t",
    }
    columns = ["n_draws", "draws_mean", "draws_min", "draws_max", "p"]
    place = pd.concat(random, ignore_index=True)[columns].rename(columns={"p": "p_random"})
    return pd.concat([keys, pd.DataFrame(table), found[list(renamed)].rename(columns=renamed), place], axis=1)


def _others(target: str, metrics: tuple[str, ...]) -> list[int]:
    """Positions of the other labels of the target's scorer."""
    prefix = target.partition(".")[0] + "."
    return [i for i, metric in enumerate(metrics) if metric.startswith(prefix) and metric != target]


def _of_target(change: Floats, target: int, others: list[int]) -> tuple[Floats, Floats]:
    """Change of the target, and mean change of the other labels, without the metrics' axis, the last."""
    own = change[..., target]
    return own, change[..., others].mean(axis=-1) if others else np.full(own.shape, np.nan)


def _means(change: Floats, sweep: Responses, target: str, others: list[int]) -> dict[str, Any]:
    """The target's mean change beside that of the strongest other label."""
    own = change[:, sweep.metric(target)]
    effects = {i: float(np.nanmean(change[:, i])) for i in others if not np.isnan(change[:, i]).all()}
    strongest = max(effects, key=lambda i: abs(effects[i]), default=None)
    mean = float(np.nanmean(own)) if not np.isnan(own).all() else np.nan
    return {
        "target_effect": mean,
        "others": len(others),
        "strongest_other": None if strongest is None else sweep.metrics[strongest],
        "strongest_other_effect": np.nan if strongest is None else effects[strongest],
        "target_rank": 1 + sum(abs(effect) > abs(mean) for effect in effects.values()),
    }

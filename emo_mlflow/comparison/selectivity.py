"""Did a direction raise the emotion that it stands for, and what else?"""

from __future__ import annotations

import numpy as np
import pandas as pd

from emo_mlflow.comparison.families import with_corrections
from emo_mlflow.comparison.responses import SETTING, Responses
from emo_mlflow.scoring.targets import target_metric
from emo_mlflow.statistics import paired_effects


def selectivity(sweeps: list[Responses], family: tuple[str, ...], n_bootstrap: int, seed: int) -> pd.DataFrame:
    """The change of the target label against that of the scorer's other labels, a row per condition with a target.

    Returns:
        model, SETTING, depth; target, target_effect, others, others_effect (mean change of the `others` other labels);
        selectivity = target_effect - others_effect with its BCa interval (low, high), p_t and corrections;
        strongest_other, strongest_other_effect; target_rank, 1 if no other label's mean changed as much in size.
    """
    parts = [_of_sweep(sweep, n_bootstrap, seed) for sweep in sweeps]
    parts = [part for part in parts if len(part)]
    if not parts:
        return pd.DataFrame(columns=["model", *SETTING, "target", "p_t"])
    return with_corrections(pd.concat(parts, ignore_index=True), "p_t", family)


def _of_sweep(sweep: Responses, n_bootstrap: int, seed: int) -> pd.DataFrame:
    conditions = sweep.conditions.iloc[sweep.rows("emotion")]
    targets = {emotion: target_metric(emotion, sweep.metrics) for emotion in conditions["emotion"].unique()}
    conditions = conditions[conditions["emotion"].map(targets).notna()]
    if not len(conditions):
        return pd.DataFrame()
    table, own, rest = [], [], []
    for position, emotion in zip(conditions.index, conditions["emotion"], strict=True):
        target = targets[emotion]
        assert target is not None
        prefix = target.partition(".")[0] + "."
        others = [i for i, metric in enumerate(sweep.metrics) if metric.startswith(prefix) and metric != target]
        change = sweep.change[position].astype(float)
        own.append(change[:, sweep.metric(target)])
        rest.append(change[:, others].mean(axis=1) if others else np.full(len(change), np.nan))
        effects = {i: float(np.nanmean(change[:, i])) for i in others if not np.isnan(change[:, i]).all()}
        strongest = max(effects, key=lambda i: abs(effects[i]), default=None)
        mean = float(np.nanmean(own[-1])) if not np.isnan(own[-1]).all() else np.nan
        table.append(
            {
                "target": target,
                "target_effect": mean,
                "others": len(others),
                "strongest_other": None if strongest is None else sweep.metrics[strongest],
                "strongest_other_effect": np.nan if strongest is None else effects[strongest],
                "target_rank": 1 + sum(abs(effect) > abs(mean) for effect in effects.values()),
            }
        )
    found = paired_effects(np.stack(rest, axis=1), np.stack(own, axis=1), n_bootstrap, seed)
    keys = conditions[["condition_id", *SETTING]].reset_index(drop=True)
    keys.insert(0, "model", sweep.source.label)
    keys["depth"] = sweep.source.depth(keys["layer"])
    renamed = {
        "n": "n",
        "mean_baseline": "others_effect",
        "mean_diff": "selectivity",
        "diff_bca_low": "low",
        "diff_bca_high": "high",
        "p_t": "p_t",
    }
    return pd.concat([keys, pd.DataFrame(table), found[list(renamed)].rename(columns=renamed)], axis=1)

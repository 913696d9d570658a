"""Steering beside asking: what each condition of a direction does, minus what an instruction, or a few examples, does to the same prompts."""

from __future__ import annotations

import numpy as np
import pandas as pd

from emo_mlflow.comparison.families import with_corrections
from emo_mlflow.comparison.responses import Responses
from emo_mlflow.comparison.rows import records
from emo_mlflow.scoring.targets import target_metric
from emo_mlflow.statistics import paired_effects
from emo_mlflow.sweeping.schemas import FLUENCY
from emo_mlflow.types import ASKING

KEYS = ["model", "arm", "condition_id", "emotion", "layer", "head", "alpha", "scope", "patch_window", "metric"]


def against_asking(sweeps: list[Responses], family: tuple[str, ...], n_bootstrap: int, seed: int) -> pd.DataFrame:
    """A row per way of asking for an emotion, condition of the emotion's direction, and metric: its own label, and broken text.

    Returns:
        model, arm (`instruction` or `examples`), condition_id (of the direction), emotion, layer, head, alpha, scope, patch_window, metric; n
        (prompts); effect_direction and effect_asking, each against the baseline over these prompts; difference = effect_direction -
        effect_asking, paired by prompt, with its interval (low, high); d_z, p (sign flips), p_t, reason and corrections of p.
    """
    parts = [
        _of_arm(sweep, int(asking), n_bootstrap, seed) for sweep in sweeps for kind in ASKING for asking in sweep.rows(kind)
    ]
    if not parts:
        return pd.DataFrame(columns=[*KEYS, "effect_direction", "effect_asking", "difference", "low", "high", "p"])
    return with_corrections(pd.concat(parts, ignore_index=True), "p", family)


def _of_arm(sweep: Responses, asking: int, n_bootstrap: int, seed: int) -> pd.DataFrame:
    arm = records(sweep.conditions.iloc[[asking]])[0]
    directions = [int(row) for row in sweep.rows("emotion") if sweep.conditions["emotion"].iloc[row] == arm["emotion"]]
    target = target_metric(arm["emotion"], set(sweep.metrics))
    metrics = [name for name in (target, FLUENCY["broken"]) if name in sweep.metrics]
    columns = [sweep.metric(str(name)) for name in metrics]
    n_prompts = sweep.change.shape[1]
    steered = sweep.change[directions][:, :, columns].transpose(1, 0, 2).reshape(n_prompts, -1)
    asked = np.tile(sweep.change[asking][:, columns], (1, len(directions)))
    found = paired_effects(asked, steered, n_bootstrap, seed)
    keys = sweep.conditions.iloc[directions][["condition_id", "emotion", "layer", "head", "alpha", "scope", "patch_window"]]
    keys = keys.loc[keys.index.repeat(len(metrics))].reset_index(drop=True)
    keys = keys.assign(model=sweep.source.label, arm=arm["kind"], metric=np.tile(np.array(metrics, object), len(directions)))
    names = {"n": "n", "mean_patched": "effect_direction", "mean_baseline": "effect_asking", "mean_diff": "difference", "diff_low": "low",
             "diff_high": "high", "d_z": "d_z", "p_permutation": "p", "p_t": "p_t", "reason": "reason"}  # fmt: skip
    return pd.concat([keys[KEYS], found[list(names)].rename(columns=names)], axis=1)

"""Two directions at once: whether they do more, or less, together than the sum of what each does alone (a 2 x 2 design)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from emo_mlflow.comparison.families import with_corrections
from emo_mlflow.comparison.responses import Responses
from emo_mlflow.comparison.rows import records
from emo_mlflow.statistics import paired_effects
from emo_mlflow.sweeping.results import condition_of
from emo_mlflow.types import Condition, Edit

KEYS = ["model", "condition_id", "emotion", "first", "second", "layer", "alpha", "scope", "patch_window", "metric"]
Done = tuple[object, ...]  # what a condition does, however it is written


def interactions(sweeps: list[Responses], family: tuple[str, ...], n_bootstrap: int, seed: int) -> pd.DataFrame:
    """Neither, each, and both: a row per condition of two emotions whose parts the sweep ran alone at the same strengths, and metric; none under
    `alpha_unit=kl`, where they have others.

    Returns:
        model, condition_id, emotion (the combination's name), first, second, layer, alpha, scope, patch_window, metric; n (prompts);
        effect_first, effect_second, effect_both, each against the baseline; interaction = effect_both - effect_first - effect_second,
        paired by prompt, with its interval (low, high); d_z, p (sign flips), p_t, reason and corrections of p.
    """
    parts = [_of_sweep(sweep, n_bootstrap, seed) for sweep in sweeps if sweep.source.phase != "head"]
    found = [part for part in parts if len(part)]
    if not found:
        return pd.DataFrame(columns=[*KEYS, "interaction", "p"])
    return with_corrections(pd.concat(found, ignore_index=True), "p", family)


def _of_sweep(sweep: Responses, n_bootstrap: int, seed: int) -> pd.DataFrame:
    if "edits" not in sweep.conditions or sweep.conditions["edits"].isna().all():
        return pd.DataFrame()  # also of sweeps that were made before there were several
    # Under a budget of damage both have another dose together than each has alone, so that nothing adds up.
    done = [(position, row) for position, row in enumerate(records(sweep.conditions)) if row["kind"] == "emotion" and row["alpha_unit"] != "kl"]
    conditions = {position: condition_of(row) for position, row in done}
    positions = {_done(condition, condition.every_edit): position for position, condition in conditions.items()}
    tables = []
    for both, condition in conditions.items():
        names = tuple(dict.fromkeys(edit.emotion for edit in condition.every_edit))
        alone = [positions.get(_done(condition, [edit for edit in condition.every_edit if edit.emotion == name])) for name in names]
        if len(names) == 2 and alone[0] is not None and alone[1] is not None:
            tables.append(_one(sweep, both, condition, names, (alone[0], alone[1]), n_bootstrap, seed))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _done(condition: Condition, edits: Iterable[Edit]) -> Done:
    alpha = float(condition.alpha or 0)
    injected = frozenset((edit.emotion, edit.layer, float(f"{alpha * edit.weight:.9g}")) for edit in edits)
    return (condition.scope, condition.patch_window, injected)


def _one(
    sweep: Responses, both: int, condition: Condition, names: tuple[str, ...], alone: tuple[int, int], n_bootstrap: int, seed: int
) -> pd.DataFrame:
    first, second, together = (sweep.change[position] for position in (*alone, both))
    found = paired_effects(first + second, together, n_bootstrap, seed)
    there = np.isfinite(first) & np.isfinite(second) & np.isfinite(together)  # the prompts that all of them have

    def mean(changes: np.ndarray) -> np.ndarray:
        counts = there.sum(axis=0)
        return np.where(counts, np.where(there, changes, 0.0).sum(axis=0) / np.maximum(counts, 1), np.nan)

    return pd.DataFrame(
        {
            "model": sweep.source.label,
            "condition_id": condition.condition_id,
            "emotion": condition.emotion,
            "first": names[0],
            "second": names[1],
            "layer": condition.layer,
            "head": None,
            "alpha": condition.alpha,
            "scope": condition.scope,
            "patch_window": condition.patch_window,
            "metric": list(sweep.metrics),
            "n": found["n"],
            "effect_first": mean(first),
            "effect_second": mean(second),
            "effect_both": mean(together),
            "interaction": found["mean_diff"],
            "low": found["diff_low"],
            "high": found["diff_high"],
            "d_z": found["d_z"],
            "p": found["p_permutation"],
            "p_t": found["p_t"],
            "reason": found["reason"],
        }
    )

"""Effects of every condition, and whether they are more than random directions do."""

from __future__ import annotations

import numpy as np
import pandas as pd

from emo_mlflow.comparison.families import with_corrections
from emo_mlflow.comparison.responses import SETTING, Responses, keys_of_tests, prompts_by_tests
from emo_mlflow.statistics import paired_effects, specific_effects


def effect_sizes(sweeps: list[Responses], family: tuple[str, ...], n_bootstrap: int, seed: int) -> pd.DataFrame:
    """A row per (model, emotion, layer, alpha, scope, patch_window, metric): every column of `paired_effects`, then corrections of p_t."""
    parts = []
    for sweep in sweeps:
        rows = sweep.rows("emotion")
        arms = (prompts_by_tests(arm[rows]) for arm in (sweep.before, sweep.after))
        found = paired_effects(*arms, n_bootstrap=n_bootstrap, seed=seed)
        parts.append(pd.concat([keys_of_tests(sweep, rows), found], axis=1))
    return with_corrections(pd.concat(parts, ignore_index=True), "p_t", family)


def draws_of(sweep: Responses) -> dict[int, np.ndarray]:
    """For the position of each condition of an emotion, the positions of the random controls with the same setting."""
    random = sweep.conditions.iloc[sweep.rows("random")]
    by_setting = random.groupby(SETTING, dropna=False).indices
    positions = random.index.to_numpy()
    keys = sweep.conditions[SETTING].itertuples(index=False, name=None)
    groups = {_plain(key): positions[rows] for key, rows in by_setting.items()}
    empty = np.array([], dtype=int)
    wanted = set(sweep.rows("emotion"))
    return {row: groups.get(_plain(key), empty) for row, key in enumerate(keys) if row in wanted}


def _plain(key: tuple[object, ...]) -> tuple[object, ...]:
    """A setting with its missing values as None, which equal each other."""
    return tuple(None if pd.isna(value) else value for value in key)


def specificity(sweeps: list[Responses], family: tuple[str, ...]) -> pd.DataFrame:
    """A row per row of `effect_sizes`: every column of `specific_effects`, then corrections of its p; without draws, NaN."""
    parts = []
    for sweep in sweeps:
        rows = sweep.rows("emotion")
        draws = draws_of(sweep)
        found = [specific_effects(sweep.change[row], sweep.change[draws[row]]) for row in rows]
        parts.append(pd.concat([keys_of_tests(sweep, rows), pd.concat(found, ignore_index=True)], axis=1))
    return with_corrections(pd.concat(parts, ignore_index=True), "p", family)

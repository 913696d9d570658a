"""Effects of every condition, and whether they are more than random directions do."""

from __future__ import annotations

import pandas as pd

from emo_mlflow.comparison.families import with_corrections
from emo_mlflow.comparison.responses import Responses, keys_of_tests, prompts_by_tests
from emo_mlflow.statistics import paired_effects, specific_effects


def effect_sizes(sweeps: list[Responses], family: tuple[str, ...], n_bootstrap: int, seed: int) -> pd.DataFrame:
    """The columns of `paired_effects` and corrections of p_t, a row per (model, SETTING, metric)."""
    parts = []
    for sweep in sweeps:
        rows = sweep.rows("emotion")
        before, after = prompts_by_tests(sweep.before[rows]), prompts_by_tests(sweep.after[rows])
        found = paired_effects(before, after, n_bootstrap, seed)
        parts.append(pd.concat([keys_of_tests(sweep, rows), found], axis=1))
    return with_corrections(pd.concat(parts, ignore_index=True), "p_t", family)


def specificity(sweeps: list[Responses], family: tuple[str, ...]) -> pd.DataFrame:
    """The columns of `specific_effects` and corrections of its p, a row per row of `effect_sizes`."""
    parts = []
    for sweep in sweeps:
        rows = sweep.rows("emotion")
        found = [specific_effects(sweep.change[row], sweep.change[sweep.draws[row]]) for row in rows]
        parts.append(pd.concat([keys_of_tests(sweep, rows), pd.concat(found, ignore_index=True)], axis=1))
    return with_corrections(pd.concat(parts, ignore_index=True), "p", family)

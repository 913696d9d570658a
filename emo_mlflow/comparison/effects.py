"""Effects of every condition, and whether they are more than random directions do."""

from __future__ import annotations

import numpy as np
import pandas as pd

from emo_mlflow.comparison.families import own_labels, with_corrections
from emo_mlflow.comparison.responses import Responses, keys_of_tests, prompts_by_tests
from emo_mlflow.statistics import paired_effects, specific_effects


def effect_sizes(sweeps: list[Responses], family: tuple[str, ...], n_bootstrap: int, seed: int) -> pd.DataFrame:
    """The columns of `paired_effects` and corrections of p_permutation, a row per (model, SETTING, metric)."""
    parts = []
    for sweep in sweeps:
        rows = sweep.rows("emotion")
        before, after = prompts_by_tests(sweep.before[rows]), prompts_by_tests(sweep.after[rows])
        found = paired_effects(before, after, n_bootstrap, seed)
        parts.append(pd.concat([keys_of_tests(sweep, rows), found], axis=1))
    return with_corrections(pd.concat(parts, ignore_index=True), "p_permutation", family)


def specificity(sweeps: list[Responses], family: tuple[str, ...]) -> pd.DataFrame:
    """The columns of `specific_effects` and corrections of its p, a row per row of `effect_sizes`.

    p is one-sided for an emotion's own label, which its direction is expected to move one way, and two-sided otherwise.
    """
    parts = []
    for sweep in sweeps:
        rows = sweep.rows("emotion")
        keys = keys_of_tests(sweep, rows)
        own = own_labels(keys).reshape(len(rows), -1)
        signs = np.where(own, sweep.source.signs(sweep.conditions.iloc[rows])[:, None], 0)
        found = [
            specific_effects(sweep.change[row], sweep.change[sweep.draws[row]], sign)
            for row, sign in zip(rows, signs, strict=True)
        ]
        parts.append(pd.concat([keys, pd.concat(found, ignore_index=True)], axis=1))
    return with_corrections(pd.concat(parts, ignore_index=True), "p", family)

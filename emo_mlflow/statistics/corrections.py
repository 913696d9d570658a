"""Corrections for multiple tests, over families that are named."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from emo_mlflow.statistics.moments import Floats


def bonferroni(p: Floats) -> Floats:
    """Each p times the number of tests, at most 1."""
    return np.minimum(p * len(p), 1.0)


def holm(p: Floats) -> Floats:
    """Step-down Bonferroni (Holm 1979)."""
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    found = np.empty_like(p)
    found[order] = np.minimum(stepped, 1.0)
    return found


# Not statsmodels' multipletests: it collects garbage at every call, a second each beside a loaded model.
METHODS: dict[str, Callable[[Floats], Floats]] = {
    "p_bonferroni": bonferroni,
    "p_holm": holm,
    "p_bh": stats.false_discovery_control,
}


def corrected(p: npt.ArrayLike, families: Sequence[object] | pd.Series) -> pd.DataFrame:
    """Corrected p-values within each family.

    Args:
        p: p-values; NaN where a test could not be computed, which then stays NaN and does not count.
        families: the family of each test.

    Returns:
        family_size (tests that count), p_bonferroni, p_holm (Holm 1979), p_bh (Benjamini and Hochberg 1995).
    """
    values = np.asarray(p, float)
    codes, names = pd.factorize(pd.Series(list(families), dtype=object))
    sizes = np.zeros(len(values), dtype=int)
    columns = {name: np.full(len(values), np.nan) for name in METHODS}
    for family in range(len(names)):
        members = codes == family
        rows = np.flatnonzero(members & ~np.isnan(values))
        sizes[members] = len(rows)
        for name, method in METHODS.items() if len(rows) else ():
            columns[name][rows] = method(values[rows])
    return pd.DataFrame({"family_size": sizes, **columns})

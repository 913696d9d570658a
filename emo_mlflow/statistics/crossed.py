"""Means over two crossed samples, such as prompts and random directions, or the layers of two models."""

from __future__ import annotations

import numpy as np
from scipy import stats

from emo_mlflow.statistics.moments import LEVEL, Floats, divide


def crossed_half_width(
    first: Floats, second: Floats, both: Floats, df_first: Floats | int, df_second: Floats | int
) -> Floats:
    """Half of the width of a 95% interval of a mean over two crossed samples, per test.

    The variance of the mean is that of crossed random effects, A + D - C, with degrees of freedom by Satterthwaite (1946).

    Args:
        first, second: A and D: the variance of the mean that each sample's own means show.
        both: C: what the residual puts into either of them.
        df_first, df_second: of A and D; C has their product.
    """
    # Sampling can make the difference smaller than either part, which the truth never is.
    variance = np.maximum(first + second - both, np.maximum(first, second))
    df_both = np.asarray(df_first) * np.asarray(df_second)
    parts = divide(first**2, df_first) + divide(second**2, df_second) + divide(both**2, df_both)
    return np.asarray(stats.t.ppf((1 + LEVEL) / 2, divide(variance**2, parts)) * np.sqrt(variance))


def grid_mean(values: Floats) -> tuple[float, float, float]:
    """The mean of a full grid [a, b], and its 95% interval over both samples, of which the grid holds every pair.

    The pairs that share a row are not independent of each other, and those that share a column neither. The interval is NaN for
    fewer than two rows or columns, and where a value is missing.
    """
    a, b = values.shape
    mean = float(values.mean()) if values.size else float("nan")
    if min(a, b) < 2 or np.isnan(values).any():
        return mean, float("nan"), float("nan")
    rows, columns = values.mean(axis=1), values.mean(axis=0)
    rest = values - rows[:, None] - columns[None, :] + mean
    both = (rest**2).sum() / ((a - 1) * (b - 1) * a * b)
    half = float(crossed_half_width(rows.var(ddof=1) / a, columns.var(ddof=1) / b, both, a - 1, b - 1))
    return mean, mean - half, mean + half

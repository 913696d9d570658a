"""Power of the two-sided paired t test, before any data: the n needed, and the effect that an n can detect."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import stats

from emo_mlflow.statistics.moments import Floats

TARGET = 0.8
LARGEST_N = 2**24
LARGEST_D = 100.0


def power(d: npt.ArrayLike, n: npt.ArrayLike, alpha: npt.ArrayLike) -> Floats:
    """Probability that a two-sided paired t test of n pairs at level `alpha` finds a true d_z of d; NaN below n = 2.

    t squared is F(1, n-1) with noncentrality n d^2; scipy's non-central F converges where its non-central t does not.
    """
    d, n, alpha = np.broadcast_arrays(np.abs(np.asarray(d, float)), np.asarray(n, float), np.asarray(alpha, float))
    df = np.maximum(n - 1, 1)
    noncentrality = n * d**2
    value = stats.ncf.sf(stats.f.isf(alpha, 1, df), 1, df, np.where(noncentrality > 0, noncentrality, 1.0))
    return np.where(n < 2, np.nan, np.where(noncentrality > 0, np.clip(value, 0.0, 1.0), alpha))


def required_n(d: float, alpha: float, target: float = TARGET) -> int:
    """The smallest n of pairs that finds a true d_z of d with probability `target`.

    Raises:
        ValueError: if d is 0, or so small that more than LARGEST_N pairs are needed.
    """
    if not d or power(d, LARGEST_N, alpha) < target:
        raise ValueError(f"no n up to {LARGEST_N} finds d = {d}")
    low, high = 1, LARGEST_N
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(d, middle, alpha) >= target else (middle, high)
    return high


def detectable_d(n: int, alpha: float, target: float = TARGET) -> float:
    """The smallest true d_z that n pairs find with probability `target`, to 1e-6; NaN where LARGEST_D is not."""
    if n < 2 or power(LARGEST_D, n, alpha) < target:
        return float("nan")
    low, high = 0.0, LARGEST_D
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle, n, alpha) >= target else (middle, high)
    return high

"""Bootstrap intervals of many paired differences at once: a matrix product with shared weights."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from emo_mlflow.statistics.chunks import in_chunks
from emo_mlflow.statistics.moments import LEVEL, Floats, divide

Singles = npt.NDArray[np.float32]

TIE = 1e-6  # in standard deviations of the differences: what float32 products leave of an exact tie
DEGENERATE = 1e-6  # variance of a resample, relative to the sample's, below which it has none


def expanded_tail(n: int, inflate: bool = True) -> float:
    """Tail probability at which a bootstrap interval of n values covers LEVEL (Hesterberg 2015).

    A bootstrap's spread is too small by sqrt((n-1)/n), and its tails are normal where Student's are due; both are made
    good by asking for quantiles further out. `inflate` is off for statistics that the spread cancels out of.
    """
    width = stats.t.ppf((1 + LEVEL) / 2, n - 1) * np.sqrt(n / (n - 1) if inflate else 1.0)
    return float(stats.norm.cdf(-width))


def bootstrap_weights(n: int, n_bootstrap: int, seed: int) -> Singles:
    """Shares of n values in each resample, float32 [n, n_bootstrap]; columns sum to 1."""
    counts = np.random.default_rng([seed, n]).multinomial(n, np.full(n, 1 / n), size=n_bootstrap)
    return np.ascontiguousarray(counts.T, dtype=np.float32) / np.float32(n)


def quantiles(replicates: Singles, levels: Floats) -> Floats:
    """Quantile of each sorted row [tests, n_bootstrap] at its own level, linearly interpolated; NaN for a NaN level."""
    last = replicates.shape[1] - 1
    position = np.where(np.isnan(levels), 0.0, levels) * last
    low = np.minimum(position.astype(int), max(0, last - 1))
    rows = np.arange(len(replicates))
    below, above = replicates[rows, low].astype(float), replicates[rows, np.minimum(low + 1, last)].astype(float)
    with np.errstate(invalid="ignore"):
        value = below + (position - low) * (above - below)
    return np.where(np.isfinite(value) & ~np.isnan(levels), value, np.nan)


def bca_interval(replicates: Singles, estimate: Floats, acceleration: Floats, tail: float) -> tuple[Floats, Floats]:
    """Bias-corrected and accelerated interval (Efron 1987) from sorted rows of replicates; ties count half."""
    tie = TIE * np.maximum(1.0, np.abs(estimate))
    below = (replicates < (estimate - tie).astype(np.float32)[:, None]).mean(axis=1)
    upto = (replicates <= (estimate + tie).astype(np.float32)[:, None]).mean(axis=1)
    bias = special.ndtri((below + upto) / 2)
    z = float(special.ndtri(tail))
    low, high = _bca_level(bias, acceleration, z), _bca_level(bias, acceleration, -z)
    return quantiles(replicates, low), quantiles(replicates, high)


def _bca_level(bias: Floats, acceleration: Floats, z: float) -> Floats:
    shifted = np.where(np.isfinite(bias), bias, np.nan) + z
    # Past the pole of the correction the level is the one at the pole: the outermost replicate.
    room = np.maximum(1 - acceleration * shifted, 1e-12)
    return special.ndtr(bias + shifted / room)


def skew_acceleration(influence: Floats) -> Floats:
    """Acceleration from influence values [n, tests] that sum to 0: sum u^3 / (6 (sum u^2)^1.5) (Efron 1987)."""
    return divide((influence**3).sum(axis=0), 6 * (influence**2).sum(axis=0) ** 1.5)


def d_acceleration(z: Floats, d_z: Floats) -> Floats:
    """Acceleration of d_z from its jackknife, in closed form; z [n, tests] has mean 0 and sd 1 (ddof = 1).

    NaN where the differences lose their variance without one of them.
    """
    n = len(z)
    if n < 3:
        return np.full(z.shape[1], np.nan)
    squares = (n - 1) - z**2 * n / (n - 1)
    without = divide(d_z - z / (n - 1), np.sqrt(np.where(squares > DEGENERATE * n, squares, np.nan) / (n - 2)))
    return skew_acceleration(without.mean(axis=0) - without)


def resampled(z: Floats, d_z: Floats, weights: Singles) -> tuple[Singles, Singles]:
    """Sorted replicates [tests, n_bootstrap] of the mean of z and of d_z, for standardised differences z [n, tests].

    The variance in a resample's d is the plug-in one times n / (n - 1) twice: once as ddof = 1 asks, and once because
    the population that it is drawn from, the sample, has a variance smaller by as much. A resample without variance has
    d = 0 if its mean is 0, and otherwise an infinite one, which only ranks it.
    """
    n = len(z)
    rows = np.ascontiguousarray(z.T, dtype=np.float32)
    means = rows @ weights
    variance = np.square(rows) @ weights
    variance -= np.square(means)
    shift = d_z.astype(np.float32)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        variance[variance < DEGENERATE] = 0.0
        spread = np.sqrt(variance, out=variance)
        d = means + shift
        d[np.abs(d) < TIE * np.maximum(1, np.abs(shift))] = 0.0
        d /= spread
    d *= np.float32((n - 1) / n)
    d[np.isnan(d)] = 0.0
    means.sort(axis=1)
    d.sort(axis=1)
    return means, d


def bootstrap_intervals(z: Floats, d_z: Floats, n_bootstrap: int, seed: int) -> dict[str, Floats]:
    """BCa intervals of the mean of z [n, tests] and of d_z: columns mean_low, mean_high, d_low, d_high."""
    n = len(z)
    weights = bootstrap_weights(n, n_bootstrap, seed)
    wide, narrow = expanded_tail(n), expanded_tail(n, inflate=False)

    def work(part: slice) -> dict[str, Floats]:
        means, ds = resampled(z[:, part], d_z[part], weights)
        zero = np.zeros(means.shape[0])
        mean = bca_interval(means, zero, skew_acceleration(z[:, part]), wide)
        d = bca_interval(ds, d_z[part], d_acceleration(z[:, part], d_z[part]), narrow)
        return {"mean_low": mean[0], "mean_high": mean[1], "d_low": d[0], "d_high": d[1]}

    return in_chunks(work, z.shape[1])

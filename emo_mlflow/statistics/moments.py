"""Means and standard deviations of paired differences over the prompt axis, with missing pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Integers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

FLOAT64_EPS = float(np.finfo(np.float64).eps)

# Differences of rounded numbers are themselves off by a few units in the last place; less spread than that is none.
ROUNDING = 4.0

LEVEL = 0.95  # of every interval


@dataclass(frozen=True, eq=False)
class Moments:
    """Per test: pairs n, mean of each arm over those pairs, mean and sd (ddof = 1) of the differences.

    `sd` is NaN below two pairs, and exactly 0 where the differences vary by no more than the inputs' rounding.
    """

    n: Integers
    mean_baseline: Floats
    mean_patched: Floats
    mean_diff: Floats
    sd_baseline: Floats
    sd_patched: Floats
    sd_diff: Floats


def divide(numerator: npt.ArrayLike, denominator: npt.ArrayLike) -> Floats:
    """Quotient, NaN where the denominator is 0 or either is NaN."""
    over, under = np.broadcast_arrays(np.asarray(numerator, float), np.asarray(denominator, float))
    return np.divide(over, under, out=np.full(over.shape, np.nan), where=under != 0)


def present_values(values: Floats, count: int) -> Floats:
    """The `count` values of each column [n, tests] that are not NaN, in their order, as [count, tests]."""
    if count == len(values):
        return values
    order = np.argsort(np.isnan(values), axis=0, kind="stable")[:count]
    return np.take_along_axis(values, order, axis=0)


def paired_moments(baseline: Floats, patched: Floats, axis: int = 0, eps: npt.ArrayLike = FLOAT64_EPS) -> Moments:
    """Moments over `axis`, whose entries pair up; a NaN on either side drops that pair from both arms.

    Args:
        baseline, patched: float arrays that broadcast against each other.
        eps: relative rounding of the inputs, for all or per test: the type that they were stored in decides.
    """
    present = ~(np.isnan(baseline) | np.isnan(patched))
    n = present.sum(axis)
    before = np.where(present, baseline, 0.0).astype(float)
    after = np.where(present, patched, 0.0).astype(float)
    diff = after - before
    largest = np.maximum(np.abs(before).max(axis, initial=0.0), np.abs(after).max(axis, initial=0.0))
    floor = ROUNDING * np.asarray(eps) * largest
    mean, sd = _mean_sd(diff, present, n, axis, floor)
    mean_before, sd_before = _mean_sd(before, present, n, axis, floor)
    mean_after, sd_after = _mean_sd(after, present, n, axis, floor)
    return Moments(n, mean_before, mean_after, mean, sd_before, sd_after, sd)


def _mean_sd(values: Floats, present: Mask, n: Integers, axis: int, floor: Floats) -> tuple[Floats, Floats]:
    mean = divide(values.sum(axis), n)
    deviation = np.where(present, values - np.expand_dims(mean, axis), 0.0)
    sd = np.sqrt(divide((deviation**2).sum(axis), np.where(n > 1, n - 1, 0)))
    return mean, np.where(np.abs(deviation).max(axis, initial=0.0) <= floor, sd * 0.0, sd)

"""How much, and at what price: Student's interval of a mean difference, paired non-inferiority by a stated margin, the share of prompts harmed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from emo_mlflow.statistics.moments import Floats
from emo_mlflow.statistics.resampling import LEVEL as CONFIDENCE
from emo_mlflow.statistics.sequential import LEVEL

SMALLEST_N = 6  # up to five differences, any interval of theirs misses too often on scores near 0
AT_ZERO = 1e-6  # in standard deviations: an end of an interval that is nearer to 0 than this is 0 (float32 scores leave +1.9e-9)

NAN = float("nan")


@dataclass(frozen=True)
class Interval:
    """A mean with its interval; `reason` says why the ends are NaN, or is empty."""

    n: int
    mean: float
    low: float
    high: float
    reason: str = ""


@dataclass(frozen=True)
class NonInferiority:
    """Is a loss smaller than the margin?

    Attributes:
        n, mean: paired differences, and their mean; negative is worse.
        bound: the lower end of the one-sided interval of the mean at 1 - level.
        p: of the hypothesis that the mean is at most -margin.
        passed: whether that is rejected; False where there is no test.
        reason: why there is no test, or empty.
    """

    n: int
    mean: float
    margin: float
    bound: float
    p: float
    passed: bool
    reason: str = ""


@dataclass(frozen=True)
class Share:
    """How many of n, and the share with its interval (Clopper and Pearson 1934), which covers at least what it says."""

    count: int
    n: int
    share: float
    low: float
    high: float


def mean_interval(differences: Floats, confidence: float = CONFIDENCE) -> Interval:
    """The mean of paired differences with Student's interval; NaN differences are left out.

    No interval sees a rare event that did not occur: where few prompts carry the effect it covers less than it says.
    """
    values, mean, sd, reason = _moments(differences)
    if reason:
        return Interval(len(values), mean, NAN, NAN, reason)
    half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * sd / np.sqrt(len(values))
    low, high = (0.0 if abs(end) < AT_ZERO * sd else float(end) for end in (mean - half, mean + half))
    return Interval(len(values), mean, low, high)


def non_inferiority(differences: Floats, margin: float, level: float = LEVEL) -> NonInferiority:
    """The one-sided paired t test of mean > -margin, for values of which more is better, such as log-probabilities of right answers.

    Args:
        differences: steered minus unsteered, an item each; NaN ones are left out.
        margin: the loss that would matter, positive, in the values' unit, and stated before the data.

    Raises:
        ValueError: if the margin is not positive.
    """
    if not margin > 0:
        raise ValueError(f"a margin of {margin} leaves nothing to rule out: give a positive one")
    values, mean, sd, reason = _moments(differences)
    if reason:
        return NonInferiority(len(values), mean, margin, NAN, NAN, False, reason)
    error, df = sd / np.sqrt(len(values)), len(values) - 1
    p = float(stats.t.sf((mean + margin) / error, df))
    return NonInferiority(len(values), mean, margin, float(mean - stats.t.ppf(1 - level, df) * error), p, p <= level)


def harmed(differences: Floats, by: float = 0.0, confidence: float = CONFIDENCE) -> Share:
    """The share of prompts on which the label fell by more than `by`; NaN differences are left out, and without any the share is NaN."""
    values = differences[~np.isnan(differences)]
    count, n = int((values < -by).sum()), len(values)
    if not n:
        return Share(0, 0, NAN, NAN, NAN)
    tail = (1 - confidence) / 2
    low = float(stats.beta.ppf(tail, count, n - count + 1)) if count else 0.0
    high = float(stats.beta.isf(tail, count + 1, n - count)) if count < n else 1.0
    return Share(count, n, count / n, low, high)


def _moments(differences: Floats) -> tuple[Floats, float, float, str]:
    """The values that are there, their mean and sd, and why they allow no inference (or an empty text)."""
    values = np.asarray(differences, float)
    values = values[~np.isnan(values)]
    if not len(values):
        return values, NAN, NAN, "no differences"
    mean = float(values.mean())
    if len(values) < SMALLEST_N:
        return values, mean, NAN, f"n < {SMALLEST_N}"
    sd = float(values.std(ddof=1))
    # Equal values have a rounding error for a standard deviation.
    return values, mean, sd, "" if sd > AT_ZERO * abs(mean) else "no variance"

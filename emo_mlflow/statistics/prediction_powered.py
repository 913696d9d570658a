"""Effects of scores corrected by labels of some of the texts: prediction-powered inference (Angelopoulos et al. 2023) of a paired difference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from emo_mlflow.statistics.moments import LEVEL, Floats, Integers

LEAST_LABELLED = 6  # labelled texts of an arm below which nothing is corrected


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Errors:
    """The labelled texts of one arm.

    Attributes:
        values: label minus score, [labelled texts].
        prompts: which prompt each belongs to, from 0, [labelled texts].
    """

    values: Floats
    prompts: Integers


def plain_difference(differences: Floats) -> Estimate:
    """The mean of the prompts' differences, with Student's interval; NaN ends where they do not vary.

    Args:
        differences: [prompts].
    """
    spread = float(differences.std(ddof=1)) / np.sqrt(len(differences)) if len(differences) > 1 else float("nan")
    return _estimate(float(differences.mean()), spread, len(differences) - 1)


def corrected_difference(differences: Floats, patched: Errors, baseline: Errors) -> Estimate:
    """What the labels' difference would be: the scores' difference on all texts, plus how far scores are off in one arm, minus the other.

    Labelled texts are a random sample of each arm's, so the correction is right on average however biased the score is. The prompt is the
    unit: everything that is known of one prompt, its difference and its labelled texts' errors, is one term of the variance, so that texts of
    one prompt do not count as independent, and a labelled text's score and error do neither.

    Args:
        differences: mean score of the arm minus the baseline's, of each prompt, [prompts].
        patched, baseline: the labelled texts of the arm and of the baseline.

    Returns:
        NaN where an arm has fewer than LEAST_LABELLED labelled texts.
    """
    n = len(differences)
    if min(len(patched.values), len(baseline.values)) < LEAST_LABELLED or n < 2:
        return Estimate(float("nan"), float("nan"), float("nan"))
    terms = (differences - differences.mean()) / n + _terms(patched, n) - _terms(baseline, n)
    mean = float(differences.mean() + patched.values.mean() - baseline.values.mean())
    labelled = min(len(np.unique(arm.prompts)) for arm in (patched, baseline))
    return _estimate(mean, float(np.sqrt(np.square(terms).sum() * n / (n - 1))), labelled - 1)


def _terms(arm: Errors, n_prompts: int) -> Floats:
    """What each prompt adds to the error of an arm's mean error, [prompts]."""
    off = (arm.values - arm.values.mean()) / len(arm.values)
    return np.asarray(np.bincount(arm.prompts, off, n_prompts), float)


def _estimate(mean: float, spread: float, freedom: int) -> Estimate:
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * spread if freedom > 0 and spread > 0 else float("nan")
    return Estimate(mean, mean - half, mean + half)

"""How well scores agree with readers' labels, and readers with each other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import stats

from emo_mlflow.statistics.moments import LEVEL, Floats, Integers, Mask

BINS = 10  # of `calibration_error`


def auc(score: Floats, positive: Mask) -> float:
    """The share of pairs in which the positive has the higher score, ties as half; NaN without a positive or a negative."""
    n = int(positive.sum())
    if n in (0, len(positive)):
        return float("nan")
    return float((stats.rankdata(score)[positive].sum() - n * (n + 1) / 2) / (n * (len(positive) - n)))


def spearman(score: Floats, label: Floats) -> float:
    """Rank correlation; NaN where either does not vary."""
    ranks = [stats.rankdata(values) for values in (score, label)]
    if any(np.ptp(rank) == 0 for rank in ranks if len(rank)) or not len(score):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def largest_spearman(label: Floats) -> float:
    """The largest rank correlation of a score that gives every text another value: labels that are the same leave its order among them open.

    The square root of 1 - sum(t^3 - t) / (n^3 - n) over groups of t equal labels, which is the correction for ties of Kendall (1945); NaN
    where the labels do not vary.
    """
    ranks = stats.rankdata(label)
    return float(np.sqrt(stats.tiecorrect(ranks))) if len(ranks) and np.ptp(ranks) else float("nan")


def weighted_kappa(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Cohen's kappa of two readers' whole numbers, with quadratic weights (Cohen 1968); NaN where both gave one label only."""
    a, b = np.asarray(first, float), np.asarray(second, float)
    chance = float(np.square(a[:, None] - b[None, :]).mean()) if len(a) else 0.0
    return 1 - float(np.square(a - b).mean()) / chance if chance else float("nan")


def calibration_error(probability: Floats, positive: Mask) -> float:
    """Expected calibration error: how far a probability is from the share that it speaks of, averaged over texts in BINS bins of equal width."""
    place = np.minimum((np.asarray(probability) * BINS).astype(int), BINS - 1)
    gaps = [abs(float(probability[place == i].sum() - positive[place == i].sum())) for i in range(BINS)]
    return sum(gaps) / len(probability) if len(probability) else float("nan")


def clustered_interval(
    statistic: Callable[[Integers], float], clusters: npt.ArrayLike, n_bootstrap: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95% percentile interval of a statistic of texts, if whole clusters of them (the texts of one prompt) are drawn again.

    Args:
        statistic: rows -> a number; resamples for which it is NaN, such as an AUC without positives, count for nothing.
        clusters: what each text belongs to, [texts].

    Returns:
        the ends; NaN where fewer than half of the resamples have a number.
    """
    _, place = np.unique(np.asarray(clusters), return_inverse=True)
    members = [np.flatnonzero(place == i) for i in range(place.max() + 1)]
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(len(members), size=len(members)) for _ in range(n_bootstrap))
    found = np.array([statistic(np.concatenate([members[i] for i in which])) for which in drawn])
    found = found[~np.isnan(found)]
    if len(found) < n_bootstrap / 2:
        return float("nan"), float("nan")
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)

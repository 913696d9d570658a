"""Tests that flip the signs of paired differences: the permutation test of the mean and Wilcoxon's signed ranks."""

from __future__ import annotations

import numpy as np
from scipy import special, stats

from emo_mlflow.statistics.chunks import in_chunks
from emo_mlflow.statistics.moments import Floats, Integers, divide

EXACT_UP_TO = 15  # differences that are not zero: 2^14 sign vectors, not counting the sign of all
RANDOM_FLIPS = 4999
WILCOXON_TABLE = 50  # differences up to which scipy tabulates the signed-rank sum without ties
TIE = 1e-9  # of the sum of magnitudes: sums that differ by less are the same sum
HALVINGS = 40  # of the interval in which a tail bound's exponent is sought


def smallest_flip_p(n: int) -> float:
    """The smallest two-sided p that sign flips of n differences can give: all have one sign."""
    return float(2.0 ** (1 - n)) if n > 0 else 1.0


def sign_flip_p(values: Floats, seed: int) -> Floats:
    """Two-sided p of the mean of each column [n, tests] if the sign of every difference were a coin's.

    Exact where at most EXACT_UP_TO differences are not zero: flipping a zero changes nothing. Otherwise by random flips,
    (1 + hits) / (flips + 1), so that p is never 0 (Phipson and Smyth 2010). Where no flip reaches the mean, the exact p may be
    far below 1 / (flips + 1); p is then an upper bound on it, if that is lower (Chernoff 1952). NaN where all are zero.
    """
    found = np.full(values.shape[1], np.nan)
    counts = np.count_nonzero(values, axis=0)
    for count in np.unique(counts[(counts > 0) & (counts <= EXACT_UP_TO)]):
        tests = np.flatnonzero(counts == count)
        found[tests] = _exact_p(_nonzero(values[:, tests], int(count)))
    many = np.flatnonzero(counts > EXACT_UP_TO)
    if len(many):
        found[many] = _random_p(values[:, many], counts[many], seed)
    return found


def _nonzero(values: Floats, count: int) -> Floats:
    """The `count` entries that are not zero of each column [n, tests], in their order, as [count, tests]."""
    if count == len(values):
        return values
    order = np.argsort(values == 0, axis=0, kind="stable")[:count]
    return np.take_along_axis(values, order, axis=0)


def _reached(rows: Floats, signs: Floats) -> Integers:
    """By row [tests, n]: how many sign vectors [n, flips] give a sum as far from zero as its own."""
    bar = np.abs(rows.sum(axis=1)) - TIE * np.abs(rows).sum(axis=1)
    return np.asarray((np.abs(rows @ signs) >= bar[:, None]).sum(axis=1), np.int64)


def _exact_p(values: Floats) -> Floats:
    n = len(values)
    bits = np.arange(2 ** (n - 1))[None, :] >> np.arange(n)[:, None] & 1
    signs = 1.0 - 2.0 * bits

    def work(part: slice) -> dict[str, Floats]:
        return {"p": _reached(np.ascontiguousarray(values[:, part].T), signs) / signs.shape[1]}

    return in_chunks(work, values.shape[1])["p"]


def _random_p(values: Floats, counts: Integers, seed: int) -> Floats:
    n = len(values)
    signs = np.random.default_rng([seed, n, 1]).integers(0, 2, size=(n, RANDOM_FLIPS)) * 2.0 - 1.0

    def work(part: slice) -> dict[str, Floats]:
        hits = _reached(np.ascontiguousarray(values[:, part].T), signs)
        p = (1 + hits) / (RANDOM_FLIPS + 1)
        none = np.flatnonzero(hits == 0)
        if len(none):
            # Valid beside the flips: it is used only where it is below every p that they can give.
            p[none] = np.minimum(p[none], tail_bound(values[:, part][:, none], counts[part][none]))
        return {"p": p}

    return in_chunks(work, values.shape[1])["p"]


def tail_bound(values: Floats, counts: Integers) -> Floats:
    """Upper bound on the exact sign-flip p of each column [n, tests]: 2 min over t of exp(sum log cosh(t x) - t |sum x|).

    Any t gives a bound; bisection finds the lowest. `counts` are the differences that are not zero: p is at least
    2^(1 - count).
    """
    scaled = values / np.sqrt((values**2).mean(axis=0))
    x, total = np.abs(scaled), np.abs(scaled.sum(axis=0))
    low, high = np.full(x.shape[1], -7.0), np.full(x.shape[1], 7.0)  # natural logarithms of t
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        short = (x * np.tanh(np.exp(middle) * x)).sum(axis=0) < total
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    t = np.exp(low)
    log_cosh = t * x + np.log1p(np.exp(-2 * t * x)) - np.log(2.0)
    return np.clip(2 * np.exp(log_cosh.sum(axis=0) - t * total), 2.0 ** (1.0 - counts), 1.0)


def signed_ranks(differences: Floats) -> Floats:
    """Midranks of the magnitudes in each column [n, tests], with the differences' signs; zeros are not ranked."""
    zeros = differences == 0
    ranks = stats.rankdata(np.abs(differences), axis=0) - zeros.sum(axis=0)
    return np.where(zeros, 0.0, ranks * np.sign(differences))


def wilcoxon(differences: Floats) -> tuple[Floats, Floats]:
    """Wilcoxon's signed-rank statistic (the sum of positive ranks) and its two-sided p, for each column [n, tests].

    Zeros are dropped (Wilcoxon's own rule). With k differences left it is exact, given the ties, for k <= EXACT_UP_TO, and
    without ties up to WILCOXON_TABLE; otherwise normal, with the variance sum(ranks^2) that ties reduce. NaN where all are 0.
    """
    ranks = signed_ranks(differences)
    squares = (ranks**2).sum(axis=0)
    positive = np.where(squares > 0, np.maximum(ranks, 0).sum(axis=0), np.nan)
    p = 2 * special.ndtr(-np.abs(divide(ranks.sum(axis=0), np.sqrt(squares))))
    counts = np.count_nonzero(differences, axis=0)
    untied = squares == counts * (counts + 1) * (2 * counts + 1) / 6
    exact = (counts > 0) & ((counts <= EXACT_UP_TO) | (untied & (counts <= WILCOXON_TABLE)))
    for count in np.unique(counts[exact]):
        tests = np.flatnonzero(exact & (counts == count))
        if count <= EXACT_UP_TO:
            p[tests] = _exact_p(_nonzero(ranks[:, tests], int(count)))
        else:
            p[tests] = stats.wilcoxon(_nonzero(differences[:, tests], int(count)), axis=0, method="exact").pvalue
    return positive, p

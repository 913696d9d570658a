"""Tests that flip the signs of paired differences: the permutation test of the mean and Wilcoxon's signed ranks."""

from __future__ import annotations

import numpy as np
from scipy import special, stats

from emo_mlflow.statistics.chunks import in_chunks
from emo_mlflow.statistics.moments import Floats, divide

EXACT_UP_TO = 15  # pairs: 2^14 sign vectors, not counting the sign of all
RANDOM_FLIPS = 4999
WILCOXON_TABLE = 50  # pairs up to which scipy tabulates the signed-rank sum without ties
TIE = 1e-9  # of the sum of magnitudes: sums that differ by less are the same sum


def sign_vectors(n: int, seed: int) -> tuple[Floats, bool]:
    """Sign vectors [n, vectors], and whether they are all there are (up to the sign of all) or random ones."""
    if n <= EXACT_UP_TO:
        bits = np.arange(2 ** (n - 1))[None, :] >> np.arange(n)[:, None] & 1
        return 1.0 - 2.0 * bits, True
    rng = np.random.default_rng([seed, n, 1])
    return rng.integers(0, 2, size=(n, RANDOM_FLIPS)) * 2.0 - 1.0, False


def sign_flip_p(values: Floats, seed: int) -> Floats:
    """Two-sided p of the mean of each column [n, tests] under random signs; exact for n <= EXACT_UP_TO.

    Random flips give (1 + hits) / (flips + 1) (Phipson and Smyth 2010), so that p is never 0.
    """
    signs, exact = sign_vectors(len(values), seed)

    def work(part: slice) -> dict[str, Floats]:
        rows = np.ascontiguousarray(values[:, part].T)
        bar = np.abs(rows.sum(axis=1)) - TIE * np.abs(rows).sum(axis=1)
        hits = (np.abs(rows @ signs) >= bar[:, None]).sum(axis=1)
        return {"p": hits / signs.shape[1] if exact else (1 + hits) / (signs.shape[1] + 1)}

    return in_chunks(work, values.shape[1])["p"]


def signed_ranks(differences: Floats) -> Floats:
    """Midranks of the magnitudes in each column [n, tests], with the differences' signs; zeros are not ranked."""
    zeros = differences == 0
    ranks = stats.rankdata(np.abs(differences), axis=0) - zeros.sum(axis=0)
    return np.where(zeros, 0.0, ranks * np.sign(differences))


def wilcoxon(differences: Floats, seed: int) -> tuple[Floats, Floats]:
    """Wilcoxon's signed-rank statistic (the sum of positive ranks) and its two-sided p, for each column [n, tests].

    Zeros are dropped (Wilcoxon's own rule). Exact, given the ties, for n <= EXACT_UP_TO, and without ties or zeros up
    to WILCOXON_TABLE; otherwise normal, with the variance sum(ranks^2) that ties reduce. NaN where all are 0.
    """
    ranks = signed_ranks(differences)
    squares = (ranks**2).sum(axis=0)
    positive = np.where(squares > 0, np.maximum(ranks, 0).sum(axis=0), np.nan)
    n = len(differences)
    if n <= EXACT_UP_TO:
        return positive, np.where(squares > 0, sign_flip_p(ranks, seed), np.nan)
    p = 2 * special.ndtr(-np.abs(divide(ranks.sum(axis=0), np.sqrt(squares))))
    untied = squares == n * (n + 1) * (2 * n + 1) / 6
    if n <= WILCOXON_TABLE and untied.any():
        p[untied] = stats.wilcoxon(differences[:, untied], axis=0, method="exact").pvalue
    return positive, p

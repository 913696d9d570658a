"""95% intervals of a mean difference and of d_z: Student's for few pairs, the bootstrap's for many, none for a handful."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import special, stats

from emo_mlflow.statistics.moments import LEVEL, Floats, Integers, present_values
from emo_mlflow.statistics.resampling import bootstrap_intervals

# Simulated with scores near 0 (docs/statistics.md): of few pairs bootstrap intervals are too short, also where nothing changes; of
# many they cover rare events better than Student's. Of fewer than LEAST nothing covers what it says without a normal distribution.
LEAST = 6
BOOTSTRAP_FROM = 60
ZERO = 1e-6  # in standard deviations of the differences: an end that is nearer to 0 is 0
STUDENT, BCA = "t", "BCa"
ENDS = ("diff_low", "diff_high", "d_low", "d_high")


def intervals(
    difference: Floats, n: Integers, mean: Floats, sd: Floats, n_bootstrap: int, seed: int
) -> tuple[dict[str, Floats], pd.Series]:
    """Intervals of each test's mean difference (diff_low, diff_high) and d_z (d_low, d_high), and which kind they are.

    Below BOOTSTRAP_FROM pairs, that of the mean is Student's, and that of d_z of the non-central t; from there on both are BCa
    bootstrap intervals, expanded as Hesterberg (2015) does. NaN, and the kind empty, below LEAST pairs or without variance.

    Args:
        difference: [n_prompts, n_tests]; NaN where a pair is missing.
        n, mean, sd: of each test's differences.
    """
    varies = sd > 0
    few = varies & (n >= LEAST) & (n < BOOTSTRAP_FROM)
    many = varies & (n >= BOOTSTRAP_FROM)
    found = {end: np.full(len(n), np.nan) for end in ENDS}
    for end, values in _student(n[few], mean[few], sd[few]).items():
        found[end][few] = values
    for count in np.unique(n[many]):
        tests = np.flatnonzero(many & (n == count))
        z = (present_values(difference[:, tests], int(count)) - mean[tests]) / sd[tests]
        columns = bootstrap_intervals(z, mean[tests] / sd[tests], n_bootstrap, seed)
        for end in ("low", "high"):
            found[f"diff_{end}"][tests] = mean[tests] + sd[tests] * columns[f"mean_{end}"]
            found[f"d_{end}"][tests] = columns[f"d_{end}"]
    for end in ENDS:
        scale = sd if end.startswith("diff") else 1.0
        found[end] = np.where(np.abs(found[end]) < ZERO * scale, 0.0, found[end])
    return found, pd.Series(np.select([few, many], [STUDENT, BCA], ""), dtype=object)


def _student(n: Integers, mean: Floats, sd: Floats) -> dict[str, Floats]:
    half = stats.t.ppf((1 + LEVEL) / 2, n - 1) * sd / np.sqrt(n)
    t, root = mean / sd * np.sqrt(n), np.sqrt(n)
    return {
        "diff_low": mean - half,
        "diff_high": mean + half,
        "d_low": special.nctdtrinc(n - 1, (1 + LEVEL) / 2, t) / root,
        "d_high": special.nctdtrinc(n - 1, (1 - LEVEL) / 2, t) / root,
    }

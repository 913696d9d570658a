"""How fast paired_effects is: the first system's 18,798 tests with 2,000 bootstrap samples, beside scipy on a sample of them.

    python bench/comparison.py

Prints the median of several runs and the peak memory. Everything that `paired_effects` gives is counted: percentile and BCa
intervals of the difference and of d, t, Wilcoxon and sign-flip tests. scipy does the percentile and BCa intervals of the
difference alone, one test at a time as the first system did, and is extrapolated.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable

import numpy as np
from scipy import stats

from emo_mlflow.statistics import paired_effects
from emo_mlflow.statistics.resampling import bootstrap_columns
from emo_mlflow.statistics.signs import sign_flip_p

TESTS, RESAMPLES, REPEATS, SCIPY_TESTS = 18_798, 2000, 5, 40
LIMITS = {8: 2.0, 225: 10.0}
FIRST_SYSTEM = 908.85  # seconds, n = 8, four jobs, as its report has it


def arms(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of n prompts in two arms, float32 [n, TESTS]."""
    rng = np.random.default_rng(n)
    baseline = rng.random((n, TESTS), dtype=np.float32)
    return baseline, (baseline + rng.normal(0.02, 0.1, (n, TESTS))).astype(np.float32)


def median_seconds(work: Callable[[], object]) -> float:
    """Of REPEATS runs, after one that is not counted."""
    work()
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return float(np.median(found))


def scipy_seconds(difference: np.ndarray) -> float:
    """scipy.stats.bootstrap, both methods, on SCIPY_TESTS tests, extrapolated to TESTS."""
    start = time.perf_counter()
    for column in difference[:, :SCIPY_TESTS].T:
        for method in ("percentile", "BCa"):
            stats.bootstrap((column,), np.mean, n_resamples=RESAMPLES, method=method, rng=0)
    return (time.perf_counter() - start) / SCIPY_TESTS * TESTS


def main() -> int:
    """Prints the figures; exits with 1 if a limit is missed."""
    print(
        f"{TESTS:,} tests x {RESAMPLES:,} resamples, {os.cpu_count()} cores; the first system: {FIRST_SYSTEM} s at n = 8"
    )
    missed = False
    for n, limit in LIMITS.items():
        baseline, patched = arms(n)
        difference = (patched - baseline).astype(float)
        z = (difference - difference.mean(axis=0)) / difference.std(axis=0, ddof=1)
        d_z = difference.mean(axis=0) / difference.std(axis=0, ddof=1)
        everything = median_seconds(lambda a=baseline, b=patched: paired_effects(a, b, RESAMPLES))
        bootstrap = median_seconds(lambda z=z, d=d_z: bootstrap_columns(z, d, RESAMPLES, 0))
        flips = median_seconds(lambda d=difference: sign_flip_p(d, 0))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform != "darwin" else 2**30)
        scipy = scipy_seconds(difference)
        print(
            f"n = {n:3}: paired_effects {everything:5.2f} s (limit {limit:g}), of which bootstrap {bootstrap:.2f}, sign flips {flips:.2f}; "
            f"peak memory {peak:.2f} GiB (limit 2); scipy.stats.bootstrap {scipy:,.0f} s, {scipy / bootstrap:,.0f} times as long"
        )
        missed |= everything > limit or peak > 2
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())

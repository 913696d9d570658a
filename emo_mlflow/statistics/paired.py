"""Effect sizes, intervals and tests of many paired comparisons at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import special, stats

from emo_mlflow.statistics.intervals import ENDS, LEAST, intervals
from emo_mlflow.statistics.moments import Floats, Integers, divide, paired_moments, present_values
from emo_mlflow.statistics.signs import sign_flip_p, wilcoxon
from emo_mlflow.types import N_BOOTSTRAP

TOO_FEW, CONSTANT = "n < 2", "no variance"
NO_INTERVAL, NO_INTERVAL_OF_D = f"n < {LEAST}: no interval", "too few prompts differ for an interval of d"


def hedges_factor(df: npt.ArrayLike) -> Floats:
    """J(df) = G(df/2) / (sqrt(df/2) G((df-1)/2)), which unbiases a standardised mean (Hedges 1981)."""
    half = np.where(np.asarray(df) > 1, np.asarray(df, float) / 2, np.nan)
    return np.asarray(np.exp(special.gammaln(half) - special.gammaln(half - 0.5)) / np.sqrt(half))


def paired_effects(baseline: Floats, patched: Floats, n_bootstrap: int = N_BOOTSTRAP, seed: int = 0) -> pd.DataFrame:
    """Effects of `patched` against `baseline`, a row per test.

    Args:
        baseline, patched: float [n_prompts, n_tests], rows paired; NaN = missing pair, dropped on both sides from that
            test alone. The result is what the remaining rows alone would give.
        n_bootstrap: resamples of the prompts, the same for all tests with as many pairs.
        seed: of the resamples and of random sign flips.

    Returns:
        n (pairs); mean_baseline, mean_patched, mean_diff, sd_baseline, sd_patched, sd_diff; d_z = mean_diff / sd_diff
        (Cohen 1988); d_av = mean_diff / mean of both sd (Lakens 2013); hedges_g = J(n-1) d_z; diff_low, diff_high, d_low,
        d_high: 95% intervals of mean_diff and d_z, and interval, their kind (`intervals.intervals`); t and p_t (paired t
        test); wilcoxon and p_wilcoxon (signed ranks); p_permutation (sign flips); reason: why values of the row are NaN, or
        an empty text.

    Raises:
        ValueError: if the shapes differ or are not two-dimensional, or a value is infinite.
    """
    if baseline.shape != patched.shape or baseline.ndim != 2:
        raise ValueError(f"need two arrays [n_prompts, n_tests], not {baseline.shape} and {patched.shape}")
    if np.isinf(baseline).any() or np.isinf(patched).any():
        raise ValueError("values are infinite: only finite numbers and NaN can be compared")
    moments = paired_moments(baseline, patched, eps=max(np.finfo(baseline.dtype).eps, np.finfo(patched.dtype).eps))
    n, mean, sd = moments.n, moments.mean_diff, moments.sd_diff
    difference = patched.astype(float) - baseline
    ends, kind = intervals(difference, n, mean, sd, n_bootstrap, seed)
    columns: dict[str, Floats | Integers | pd.Series] = {
        "n": n,
        "mean_baseline": moments.mean_baseline,
        "mean_patched": moments.mean_patched,
        "mean_diff": mean,
        "sd_baseline": moments.sd_baseline,
        "sd_patched": moments.sd_patched,
        "sd_diff": sd,
        "d_z": divide(mean, sd),
        "d_av": divide(mean, (moments.sd_baseline + moments.sd_patched) / 2),
        "hedges_g": hedges_factor(n - 1) * divide(mean, sd),
        **ends,
        "interval": kind,
        **_t_test(divide(mean, sd), n),
        **_sign_tests(difference, n, seed),
    }
    table = pd.DataFrame(columns)
    unbounded = table[list(ENDS)].isna().any(axis=1)
    reasons = [TOO_FEW, CONSTANT, NO_INTERVAL, NO_INTERVAL_OF_D]
    return table.assign(reason=np.select([n < 2, sd == 0, n < LEAST, unbounded], reasons, ""))


def _t_test(d_z: Floats, n: Integers) -> dict[str, Floats]:
    t = d_z * np.sqrt(n)
    return {"t": t, "p_t": 2 * stats.t.sf(np.abs(t), np.maximum(n - 1, 1))}


def _sign_tests(difference: Floats, n: Integers, seed: int) -> dict[str, Floats]:
    """Tests that flip signs; each is done together with those that have as many pairs."""
    found = {name: np.full(len(n), np.nan) for name in ("wilcoxon", "p_wilcoxon", "p_permutation")}
    for count in np.unique(n[n >= 2]):
        tests = np.flatnonzero(n == count)
        dense = present_values(difference[:, tests], int(count))
        found["wilcoxon"][tests], found["p_wilcoxon"][tests] = wilcoxon(dense)
        found["p_permutation"][tests] = sign_flip_p(dense, seed)
    return found

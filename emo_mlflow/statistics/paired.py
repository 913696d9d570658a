"""Effect sizes, intervals and tests of many paired comparisons at once."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from emo_mlflow.statistics.moments import Floats, Integers, divide, paired_moments
from emo_mlflow.statistics.resampling import bootstrap_columns, hedges_factor
from emo_mlflow.statistics.signs import sign_flip_p, wilcoxon
from emo_mlflow.types import N_BOOTSTRAP

INTERVALS = ("low", "high", "bca_low", "bca_high")
TOO_FEW, CONSTANT, NO_INTERVAL = "n < 2", "no variance", "too few prompts differ for an interval of d"


def paired_effects(baseline: Floats, patched: Floats, n_bootstrap: int = N_BOOTSTRAP, seed: int = 0) -> pd.DataFrame:
    """Effects of `patched` against `baseline`, a row per test.

    Args:
        baseline, patched: float [n_prompts, n_tests], rows paired; NaN = missing pair, dropped on both sides from that
            test alone. The result is what the remaining rows alone would give.
        n_bootstrap: resamples of the prompts, the same for all tests with as many pairs.
        seed: of the resamples and of random sign flips.

    Returns:
        n (pairs); mean_baseline, mean_patched, mean_diff, sd_baseline, sd_patched, sd_diff; d_z = mean_diff / sd_diff
        (Cohen 1988); d_av = mean_diff / mean of both sd (Lakens 2013); hedges_g = J(n-1) d_z; diff_* and d_*: 95%
        intervals of mean_diff and d_z, percentile (low, high) and BCa (bca_low, bca_high), expanded for small n as
        Hesterberg (2015) does (below about ten pairs those of d run far out); t and p_t (paired t test); wilcoxon and
        p_wilcoxon (signed ranks); p_permutation (sign flips); reason: why values of the row are NaN, or an empty
        text.

    Raises:
        ValueError: if the shapes differ or are not two-dimensional, or a value is infinite.
    """
    if baseline.shape != patched.shape or baseline.ndim != 2:
        raise ValueError(f"need two arrays [n_prompts, n_tests], not {baseline.shape} and {patched.shape}")
    if np.isinf(baseline).any() or np.isinf(patched).any():
        raise ValueError("values are infinite: only finite numbers and NaN can be compared")
    moments = paired_moments(baseline, patched, eps=max(np.finfo(baseline.dtype).eps, np.finfo(patched.dtype).eps))
    n, sd = moments.n, moments.sd_diff
    columns: dict[str, Floats | Integers] = {
        "n": n,
        "mean_baseline": moments.mean_baseline,
        "mean_patched": moments.mean_patched,
        "mean_diff": moments.mean_diff,
        "sd_baseline": moments.sd_baseline,
        "sd_patched": moments.sd_patched,
        "sd_diff": sd,
        "d_z": divide(moments.mean_diff, sd),
        "d_av": divide(moments.mean_diff, (moments.sd_baseline + moments.sd_patched) / 2),
    }
    columns["hedges_g"] = hedges_factor(n - 1) * columns["d_z"]
    columns |= _t_test(divide(moments.mean_diff, sd), n)
    difference = patched.astype(float) - baseline
    columns |= _resampled(difference, n, moments.mean_diff, sd, n_bootstrap, seed)
    table = pd.DataFrame(columns)
    unbounded = table[[f"d_{end}" for end in INTERVALS]].isna().any(axis=1)
    reason = np.select([n < 2, sd == 0, unbounded], [TOO_FEW, CONSTANT, NO_INTERVAL], "")
    return table.assign(reason=reason)


def _t_test(d_z: Floats, n: Integers) -> dict[str, Floats]:
    t = d_z * np.sqrt(n)
    return {"t": t, "p_t": 2 * stats.t.sf(np.abs(t), np.maximum(n - 1, 1))}


def _resampled(
    difference: Floats, n: Integers, mean: Floats, sd: Floats, n_bootstrap: int, seed: int
) -> dict[str, Floats]:
    """The columns that resampling gives; tests are done together with those that have as many pairs."""
    names = [f"{what}_{end}" for what in ("diff", "d") for end in INTERVALS]
    found = {name: np.full(len(n), np.nan) for name in [*names, "wilcoxon", "p_wilcoxon", "p_permutation"]}
    for count in np.unique(n[n >= 2]):
        tests = np.flatnonzero(n == count)
        dense = _compact(difference[:, tests], int(count))
        found["wilcoxon"][tests], found["p_wilcoxon"][tests] = wilcoxon(dense, seed)
        found["p_permutation"][tests] = sign_flip_p(dense, seed)
        varies = sd[tests] > 0
        tests = tests[varies]
        if not len(tests):
            continue
        z = (dense[:, varies] - mean[tests]) / sd[tests]
        columns = bootstrap_columns(z, mean[tests] / sd[tests], n_bootstrap, seed)
        for end in INTERVALS:
            found[f"diff_{end}"][tests] = mean[tests] + sd[tests] * columns[f"mean_{end}"]
            found[f"d_{end}"][tests] = columns[f"d_{end}"]
    return found


def _compact(values: Floats, count: int) -> Floats:
    """The `count` present values of each column [n, tests], in their order, as [count, tests]."""
    if count == len(values):
        return values
    order = np.argsort(np.isnan(values), axis=0, kind="stable")[:count]
    return np.take_along_axis(values, order, axis=0)

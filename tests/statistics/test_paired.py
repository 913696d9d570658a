"""Paired effects against scipy, published values and definitions; and what must not change them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from emo_mlflow.statistics.intervals import ENDS
from emo_mlflow.statistics.paired import CONSTANT, NO_INTERVAL, NO_INTERVAL_OF_D, TOO_FEW, hedges_factor, paired_effects
from emo_mlflow.statistics.resampling import (
    bca_interval,
    bootstrap_weights,
    d_acceleration,
    expanded_tail,
    resampled,
    skew_acceleration,
)
from emo_mlflow.statistics.signs import RANDOM_FLIPS, sign_flip_p, smallest_flip_p, tail_bound, wilcoxon


def sample(
    seed: int, n: int, tests: int = 5, decimals: int | None = None, scale: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Two arms [n, tests]; `decimals` makes ties and zero differences."""
    rng = np.random.default_rng(seed)
    baseline, patched = rng.gamma(2.0, size=(n, tests)), rng.gamma(2.0, size=(n, tests)) + 0.3
    if decimals is not None:
        baseline, patched = baseline.round(decimals), patched.round(decimals)
    return baseline * scale, patched * scale


CASES = [
    (n, decimals, scale)
    for n in (2, 3, 8, 11, 16, 30, 70)
    for decimals, scale in ((None, 1.0), (0, 1.0), (None, 1e-9), (1, 1e7))
]


@pytest.mark.parametrize(("n", "decimals", "scale"), CASES)
def test_t_test_and_effect_sizes_equal_scipy(n: int, decimals: int | None, scale: float) -> None:
    """Guards against the wrong ddof, unpaired formulas, and loss of precision at huge or tiny scales."""
    baseline, patched = sample(n, n, decimals=decimals, scale=scale)
    table = paired_effects(baseline, patched, n_bootstrap=50)
    for i, row in table.iterrows():
        difference = patched[:, i] - baseline[:, i]
        if np.ptp(difference) == 0:
            assert row["reason"] == CONSTANT and np.isnan(row["d_z"])
            continue
        expected = stats.ttest_rel(patched[:, i], baseline[:, i])
        assert row["t"] == pytest.approx(expected.statistic, rel=1e-9)
        assert row["p_t"] == pytest.approx(expected.pvalue, rel=1e-9)
        assert row["mean_diff"] == pytest.approx(difference.mean(), rel=1e-9, abs=1e-12 * scale)
        assert row["d_z"] == pytest.approx(difference.mean() / difference.std(ddof=1), rel=1e-9)
        spread = (baseline[:, i].std(ddof=1) + patched[:, i].std(ddof=1)) / 2
        assert row["d_av"] == pytest.approx(difference.mean() / spread if spread else np.nan, rel=1e-9, nan_ok=True)


@pytest.mark.parametrize(("n", "decimals", "scale"), [case for case in CASES if case[0] <= 8])
def test_permutation_equals_scipy_exactly(n: int, decimals: int | None, scale: float) -> None:
    """Guards against miscounted ties: sums that are equal on paper differ in the last bits."""
    baseline, patched = sample(100 + n, n, decimals=decimals, scale=scale)
    table = paired_effects(baseline, patched, n_bootstrap=50)
    for i, row in table.iterrows():
        if (patched[:, i] == baseline[:, i]).all():
            assert np.isnan(row["p_permutation"])
            continue
        expected = stats.permutation_test(
            (baseline[:, i], patched[:, i]),
            lambda x, y, axis: np.mean(y - x, axis=axis),
            permutation_type="samples",
            n_resamples=np.inf,
            vectorized=True,
        )
        assert row["p_permutation"] == pytest.approx(expected.pvalue, abs=1e-12)


@pytest.mark.parametrize(("n", "decimals", "scale"), CASES)
def test_wilcoxon_equals_scipy(n: int, decimals: int | None, scale: float) -> None:
    """Guards against zeros that are ranked, ties that keep the untied variance, and one test's ties changing another's method."""
    baseline, patched = sample(200 + n, n, decimals=decimals, scale=scale)
    table = paired_effects(baseline, patched, n_bootstrap=50)
    for i, row in table.iterrows():
        difference = patched[:, i] - baseline[:, i]
        kept = difference[difference != 0]
        untied = len(np.unique(np.abs(kept))) == len(kept)
        if len(kept) < 2:
            assert row["p_wilcoxon"] == pytest.approx(1.0 if len(kept) else np.nan, nan_ok=True)
            continue
        method: object = "exact" if untied and len(kept) <= 50 else "asymptotic"
        if len(kept) <= 15 and not untied:  # scipy's exact test given the ties is its permutation test
            method = stats.PermutationMethod(n_resamples=np.inf)
        expected = stats.wilcoxon(kept, method=method, alternative="two-sided")
        assert row["p_wilcoxon"] == pytest.approx(expected.pvalue, rel=1e-9)
        greater = stats.wilcoxon(kept, method="asymptotic", alternative="greater").statistic
        assert row["wilcoxon"] == pytest.approx(greater)


def test_published_values() -> None:
    """Guards against a consistent misreading of the formulas, which comparing with one library would share.

    Student's sleep data in R's help of t.test: t(9) = 4.0621, p = 0.002833. The depression data of Hollander and Wolfe (1973) in
    R's help of wilcox.test: V = 40, one-sided p = 0.01953. Darwin's maize in Fisher (1935, section 21): 863 of 32,768 sign vectors
    on either side. Lakens (2013, table 1): d_z = 1.50, d_av = 1.13.
    """
    one = np.array([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0])
    two = np.array([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4])
    sleep = paired_effects(one[:, None], two[:, None], 10).iloc[0]
    assert (round(sleep["t"], 4), round(sleep["p_t"], 6)) == (4.0621, 0.002833)
    first = np.array([1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30])
    second = np.array([0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29])
    depression = paired_effects(second[:, None], first[:, None], 10).iloc[0]
    assert (depression["wilcoxon"], round(depression["p_wilcoxon"] / 2, 5)) == (40, 0.01953)
    maize = np.array([49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48.0])
    fisher = paired_effects(np.zeros((15, 1)), maize[:, None], 10).iloc[0]
    assert fisher["p_permutation"] == 2 * 863 / 2**15
    movie_1 = np.array([9, 7, 8, 9, 8, 9, 9, 10, 9, 9.0])
    movie_2 = np.array([9, 6, 7, 8, 7, 9, 8, 8, 8, 7.0])
    lakens = paired_effects(movie_2[:, None], movie_1[:, None], 10).iloc[0]
    assert (round(lakens["d_z"], 2), round(lakens["d_av"], 2)) == (1.50, 1.13)


def test_hedges_factor_removes_the_bias_of_d() -> None:
    """Guards against the approximation 1 - 3 / (4 df - 1) where it is poor: J is what makes the non-central t's mean 1."""
    for df in (2, 3, 10, 50, 500):
        assert hedges_factor(df) * stats.nct.mean(df, 1.0) == pytest.approx(1.0, rel=1e-9)
    assert np.isnan(hedges_factor(1))


@pytest.mark.parametrize("n", [8, 25, 70])
def test_intervals_equal_scipy_bootstrap_on_the_same_resamples(n: int) -> None:
    """Guards against errors in bias correction, acceleration and quantiles, which Monte-Carlo noise would hide."""
    rng = np.random.default_rng(n)
    x = rng.gamma(1.0, size=(n, 6)) + 0.2
    mean, sd = x.mean(axis=0), x.std(axis=0, ddof=1)
    z, d = (x - mean) / sd, mean / sd
    weights = bootstrap_weights(n, 999, 0)
    counts = np.rint(weights * n).astype(int)
    means, ds = resampled(z, d, weights)
    tail = expanded_tail(n)
    ours = {
        "mean": bca_interval(means, 0 * d, skew_acceleration(z), tail),
        "d": bca_interval(ds, d, d_acceleration(z, d), tail),
    }
    for i in range(x.shape[1]):
        draws = np.stack([np.repeat(x[:, i], column) for column in counts.T])
        with np.errstate(divide="ignore"):
            d_draws = draws.mean(axis=1) / draws.std(axis=1) * (n - 1) / n
        distributions = {"mean": (draws.mean(axis=1) - mean[i]) / sd[i], "d": d_draws}
        statistics = {
            "mean": lambda v, axis, i=i: (np.mean(v, axis=axis) - mean[i]) / sd[i],
            "d": lambda v, axis: np.mean(v, axis=axis) / np.std(v, axis=axis, ddof=1),
        }
        for name, distribution in distributions.items():
            expected = stats.bootstrap(
                (x[:, i],),
                statistics[name],
                n_resamples=0,
                confidence_level=1 - 2 * tail,
                bootstrap_result=SimpleNamespace(bootstrap_distribution=distribution),
                method="BCa",
            ).confidence_interval
            ends = [end if np.isfinite(end) else np.nan for end in (expected.low, expected.high)]
            assert [ours[name][0][i], ours[name][1][i]] == pytest.approx(ends, rel=2e-5, abs=2e-5, nan_ok=True)


def test_intervals_of_few_prompts_equal_r() -> None:
    """Guards against bootstrap intervals of few prompts, whose coverage is 58 to 90% for scores (n = 6), and +1.9e-9 that is above 0.

    R: t.test(d)$conf.int, and the non-centralities at which pt(t, 7, ncp) is 0.975 and 0.025, by uniroot, over sqrt(8).
    """
    d = np.array([0.12, 0.31, -0.05, 0.42, 0.08, 0.27, 0.02, 0.19])
    row = paired_effects(np.zeros((8, 1)), d[:, None]).iloc[0]
    assert row["interval"] == "t" and row["reason"] == ""
    assert row[["diff_low", "diff_high"]].tolist() == pytest.approx([0.0381917026435, 0.301808297356], rel=1e-10)
    assert row[["d_low", "d_high"]].tolist() == pytest.approx([0.168929506828, 1.9427670318], rel=1e-6)
    five = paired_effects(np.zeros((5, 1)), d[:5, None]).iloc[0]
    assert five[list(ENDS)].isna().all() and five["reason"] == NO_INTERVAL and five["interval"] == "" and five["p_t"] > 0
    many = np.tile(d, 8)
    assert paired_effects(np.zeros((59, 1)), many[:59, None])["interval"][0] == "t"
    assert paired_effects(np.zeros((60, 1)), many[:60, None])["interval"][0] == "BCa"
    # Centred so that the lower end is 0 but for rounding.
    shifted = d - d.mean() + (row["diff_high"] - row["diff_low"]) / 2
    for nudge in (1e-9, -1e-9):
        assert paired_effects(np.zeros((8, 1)), (shifted + nudge)[:, None])["diff_low"][0] == 0.0


def test_tests_of_rare_events_are_exact() -> None:
    """Guards against normal approximations to four changes among 225: p is 2 / 2^4, whatever the other 221 did not do.

    R, by all sign vectors (expand.grid) of the differences that are not zero: 0.125 for four equal ones, where wilcox.test, which
    approximates where there are ties, says 0.0719 and t.test 0.0453; 0.046875 for seven with ties.
    """
    four = np.zeros((225, 1))
    four[::60] = 0.4
    row = paired_effects(np.zeros_like(four), four).iloc[0]
    assert row["p_wilcoxon"] == row["p_permutation"] == 0.125
    assert row["p_t"] == pytest.approx(0.0452553144538, rel=1e-9)
    seven = np.zeros((30, 1))
    seven[:7, 0] = [0.5, 0.2, 0.2, -0.1, 0.3, 0.3, 0.05]
    row = paired_effects(np.zeros_like(seven), seven).iloc[0]
    assert row["p_wilcoxon"] == row["p_permutation"] == 0.046875
    # R: wilcox.test of the 20 alone, which is exact: V = 173.
    twenty = [1.3, -0.2, 2.4, 0.7, -1.1, 0.9, 3.1, -0.4, 1.7, 0.6, 2.2, -0.8, 0.3, 1.9, 2.8, -1.5, 0.1, 1.2, 0.5, 2.6]
    value, p = wilcoxon(np.array([*twenty, *[0.0] * 50])[:, None])
    assert (value[0], p[0]) == (173, pytest.approx(0.00943565368652, rel=1e-9))


def test_the_tail_of_sign_flips_is_bounded() -> None:
    """Guards against 1 in 5,000 as the least p of any effect, which no correction over hundreds of tests survives, and against bounds
    below the exact p. R, by all 2^18 sign vectors: 1.52587890625e-05."""
    d = np.array([0.9, 1.1, 0.7, 1.3, 0.8, 1.2, 0.6, 1.4, 1, 0.5, 1.5, 0.95, 1.05, 0.85, 1.15, 0.75, -0.1, 0.4])[:, None]
    exact = 1.52587890625e-05
    assert exact <= tail_bound(d, np.array([18]))[0] < 10 * exact
    assert exact <= sign_flip_p(d, 0)[0] < 1 / (RANDOM_FLIPS + 1)
    rng = np.random.default_rng(0)
    alike = np.abs(rng.normal(size=(40, 3)))
    assert tail_bound(alike, np.full(3, 40)) == pytest.approx([smallest_flip_p(40)] * 3)
    null = rng.normal(size=(40, 200))
    assert (tail_bound(null, np.full(200, 40)) >= np.minimum(1, stats.ttest_1samp(null, 0).pvalue * 0.8)).all()


def test_resampling_weights_are_draws_with_replacement() -> None:
    """Guards against resamples of another size, and against seeds that do not change them."""
    weights = bootstrap_weights(7, 4000, 3)
    assert np.allclose(weights.sum(axis=0), 1, atol=1e-6)
    assert np.rint(weights * 7).var() == pytest.approx(6 / 7, rel=0.05)
    assert not np.array_equal(weights, bootstrap_weights(7, 4000, 4))


@given(seed=st.integers(0, 2**32), missing=st.integers(1, 5))
@settings(max_examples=15, deadline=None)
def test_a_missing_pair_is_as_if_the_prompt_were_absent(seed: int, missing: int) -> None:
    """Guards against NaNs dropped per arm, so that pairs slip: the first system's mistake."""
    baseline, patched = sample(seed, 12, tests=3)
    rng = np.random.default_rng(seed)
    holed_baseline, holed_patched = baseline.copy(), patched.copy()
    for test in range(3):
        gone = rng.choice(12, missing, replace=False)
        arm = rng.integers(0, 2, missing).astype(bool)
        holed_baseline[gone[arm], test] = np.nan
        holed_patched[gone[~arm], test] = np.nan
        keep = np.setdiff1d(np.arange(12), gone)
        alone = paired_effects(baseline[keep][:, [test]], patched[keep][:, [test]], 200).iloc[0]
        row = paired_effects(holed_baseline, holed_patched, 200).iloc[test]
        assert row["n"] == 12 - missing
        assert row.drop(["reason", "interval"]).astype(float).to_numpy() == pytest.approx(
            alone.drop(["reason", "interval"]).astype(float).to_numpy(), rel=1e-5, nan_ok=True
        )


@given(seed=st.integers(0, 2**32), n=st.sampled_from([3, 9, 20]), scale=st.sampled_from([1e-12, 1.0, 1e12]))
@settings(max_examples=20, deadline=None)
def test_exchanging_the_arms_and_rescaling_change_nothing_else(seed: int, n: int, scale: float) -> None:
    """Guards against one-sided p-values, thresholds that are not relative, and d that depends on units."""
    baseline, patched = sample(seed, n)
    forward, back = paired_effects(baseline, patched, 300), paired_effects(patched * scale, baseline * scale, 300)
    for column in ("p_t", "p_wilcoxon", "p_permutation"):
        assert back[column].to_numpy() == pytest.approx(forward[column].to_numpy(), rel=1e-6)
        assert ((forward[column] > 0) & (forward[column] <= 1)).all()
    for column in ("d_z", "d_av", "hedges_g", "t"):
        assert back[column].to_numpy() == pytest.approx(-forward[column].to_numpy(), rel=1e-6)
    assert back["mean_diff"].to_numpy() == pytest.approx(-scale * forward["mean_diff"].to_numpy(), rel=1e-6)
    assert back["d_low"].to_numpy() == pytest.approx(-forward["d_high"].to_numpy(), rel=1e-4, abs=1e-5, nan_ok=True)
    assert back["diff_low"].to_numpy() == pytest.approx(-scale * forward["diff_high"].to_numpy(), rel=1e-4, nan_ok=True)


def test_tests_do_not_influence_each_other() -> None:
    """Guards against chunks and shared methods that let one test's data reach another's row (scipy's own lesson: batch invariance)."""
    baseline, patched = sample(1, 9, tests=600)
    baseline[:, ::7] = baseline[:, ::7].round()
    patched[:, ::7] = patched[:, ::7].round()
    together = paired_effects(baseline, patched, 100)
    for test in (0, 7, 255, 256, 599):
        alone = paired_effects(baseline[:, [test]], patched[:, [test]], 100)
        pair = [table.drop(columns=["reason", "interval"]).to_numpy(float) for table in (together.iloc[[test]], alone)]
        assert pair[0] == pytest.approx(pair[1], rel=1e-5, nan_ok=True)


def test_what_cannot_be_computed_is_nan_with_a_reason() -> None:
    """Guards against d = -548: differences that vary by rounding alone have no variance."""
    baseline = np.array(
        [[0.31, 0.1, 0.5, np.nan], [0.17, 0.1, 0.5, 0.2], [0.93, 0.1, 0.5, np.nan], [0.71, 0.1, 0.9, np.nan]],
        np.float32,
    )
    patched = baseline + np.array([[0.1], [0.1], [0.1], [0.1]], np.float32) * np.array([1, 0, 0, 1], np.float32)
    patched[3, 2] += 0.3
    table = paired_effects(baseline, patched, 200)
    assert table["reason"].tolist() == [CONSTANT, CONSTANT, NO_INTERVAL, TOO_FEW]
    assert table["n"].tolist() == [4, 4, 4, 1]
    assert table.loc[[0, 1, 3], ["d_z", "hedges_g", "t", "p_t", *ENDS]].isna().all(axis=None)
    assert table.loc[2, "d_z"] == pytest.approx(0.5)
    one = np.zeros((70, 1))
    one[0] = 0.3  # without it, nothing varies: the jackknife of d has no acceleration
    assert paired_effects(np.zeros_like(one), one)["reason"].tolist() == [NO_INTERVAL_OF_D]
    assert not np.isinf(table.select_dtypes("number").to_numpy(float)).any()


def test_bad_arrays_are_refused() -> None:
    """Guards against broadcasting one arm over the other, and infinities that spread through shared products."""
    with pytest.raises(ValueError, match=r"\(3, 2\) and \(3, 1\)"):
        paired_effects(np.zeros((3, 2)), np.zeros((3, 1)))
    with pytest.raises(ValueError, match="infinite"):
        paired_effects(np.zeros((3, 1)), np.array([[1.0], [np.inf], [0.0]]))


def test_no_tests_give_an_empty_table() -> None:
    """Guards against a comparison without conditions crashing in the statistics."""
    assert paired_effects(np.zeros((3, 0)), np.zeros((3, 0))).empty

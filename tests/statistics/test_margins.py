"""Intervals, margins and shares, beside scipy and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from emo_mlflow.statistics.margins import harmed, mean_interval, non_inferiority

VALUES = np.array([0.12, -0.05, 0.30, 0.07, 0.00, 0.21, -0.11, 0.16])


def test_interval_is_students():
    found, known = mean_interval(np.append(VALUES, np.nan)), stats.ttest_1samp(VALUES, 0).confidence_interval(0.95)
    assert (found.n, found.mean) == (8, pytest.approx(VALUES.mean()))
    assert (found.low, found.high) == pytest.approx((known.low, known.high))


@pytest.mark.parametrize(
    ("values", "reason"),
    [(VALUES[:5], "n < 6"), (np.full(9, 0.1), "no variance"), (np.full(9, np.nan), "no differences")],
)
def test_no_interval_without_grounds(values, reason):
    """Five prompts, or equal differences, allow none; the mean is still there."""
    found, test = mean_interval(values), non_inferiority(values, 0.1)
    assert math.isnan(found.low) and math.isnan(found.high) and found.reason == reason
    assert math.isnan(test.p) and not test.passed and test.reason == reason
    assert math.isnan(found.mean) == (reason == "no differences")


def test_an_end_at_zero_is_zero():
    """Guards: a lower end of +1.9e-9, which float32 scores gave, read as an effect that excludes 0."""
    half = stats.t.ppf(0.975, 7) * VALUES.std(ddof=1) / math.sqrt(8)
    assert mean_interval(VALUES - VALUES.mean() + half * (1 + 1e-9)).low == 0.0


def test_non_inferiority_is_the_one_sided_t_test():
    found, known = non_inferiority(VALUES - 0.1, 0.05), stats.ttest_1samp(VALUES - 0.1, -0.05, alternative="greater")
    assert found.p == pytest.approx(known.pvalue) and found.bound == pytest.approx(
        stats.ttest_1samp(VALUES - 0.1, 0, alternative="greater").confidence_interval(0.95).low
    )


@pytest.mark.parametrize("shift", [-0.3, -0.1, 0.0, 0.1])
def test_passing_is_a_bound_above_the_margin(shift):
    found = non_inferiority(VALUES + shift, 0.1)
    assert found.passed == (found.bound > -0.1) == (found.p < 0.05)


def test_a_loss_of_the_margin_passes_in_five_percent():
    rng = np.random.default_rng(1)
    passed = [non_inferiority(rng.normal(-0.1, 0.4, 40), 0.1).passed for _ in range(2000)]
    assert np.mean(passed) == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / 2000))


def test_a_margin_is_positive():
    with pytest.raises(ValueError, match="give a positive one"):
        non_inferiority(VALUES, 0.0)


@pytest.mark.parametrize("count", [0, 1, 7, 30])
def test_harmed_is_clopper_and_pearsons(count):
    values = np.r_[np.full(count, -0.2), np.zeros(30 - count), np.nan]
    found, known = harmed(values), stats.binomtest(count, 30).proportion_ci(0.95, "exact")
    assert (found.count, found.n, found.share) == (count, 30, count / 30)
    assert (found.low, found.high) == pytest.approx((known.low, known.high))


def test_a_fall_within_the_tolerance_is_no_harm():
    assert harmed(np.array([-0.02, -0.004, 0.0, 0.3]), by=0.01).count == 1
    assert math.isnan(harmed(np.array([np.nan])).share)

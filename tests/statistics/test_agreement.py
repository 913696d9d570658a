"""Agreement of scores with labels, against definitions written out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from emo_mlflow.statistics.agreement import (
    auc,
    calibration_error,
    clustered_interval,
    largest_spearman,
    spearman,
    weighted_kappa,
)


def test_auc_is_the_share_of_pairs():
    rng = np.random.default_rng(0)
    score, positive = rng.integers(5, size=60).astype(float), rng.random(60) < 0.3
    pairs = [(a > b) + (a == b) / 2 for a, b in itertools.product(score[positive], score[~positive])]
    assert auc(score, positive) == pytest.approx(np.mean(pairs))
    assert np.isnan(auc(score, np.zeros(60, bool))) and np.isnan(auc(score, np.ones(60, bool)))


def test_spearman_is_scipys_and_nan_without_variation():
    rng = np.random.default_rng(1)
    score, label = rng.normal(size=50), rng.integers(-1, 2, size=50) / 2
    assert spearman(score, label) == pytest.approx(stats.spearmanr(score, label).statistic)
    assert np.isnan(spearman(score, np.zeros(50))) and np.isnan(spearman(np.array([]), np.array([])))


def test_no_score_without_ties_has_a_larger_rank_correlation():
    """A score in the labels' order has it, however it orders texts of the same label; a score in any other order has less."""
    rng = np.random.default_rng(2)
    for share in (0.1, 0.5, 0.9):
        label = rng.integers(-1, 2, size=80) * (rng.random(80) > share)
        most, best = largest_spearman(label), label * 10 + rng.random(80)
        assert spearman(best, label) == pytest.approx(most) and most < 1
        i, j = np.argmin(label), np.argmax(label)
        best[[i, j]] = best[[j, i]]
        assert spearman(best, label) < most
    assert largest_spearman(np.arange(9.0)) == 1 and np.isnan(largest_spearman(np.zeros(5))) and np.isnan(largest_spearman(np.array([])))


def test_kappa_is_cohens_with_quadratic_weights():
    """Written out over the table of both readers' labels."""
    a, b = np.array([0, 0, 1, 2, 2, 1, 0, 2]), np.array([0, 1, 1, 2, 1, 1, 0, 0])
    table = np.zeros((3, 3))
    np.add.at(table, (a, b), 1 / len(a))
    weights = np.square(np.subtract.outer(np.arange(3), np.arange(3)))
    expected = np.outer(table.sum(1), table.sum(0))
    assert weighted_kappa(a, b) == pytest.approx(1 - (weights * table).sum() / (weights * expected).sum())
    assert weighted_kappa(a, a) == 1 and np.isnan(weighted_kappa([1, 1], [1, 1])) and np.isnan(weighted_kappa([], []))


def test_calibration_error_by_hand():
    """Two bins: 0.05 twice with one hit, and 0.95 (of which 1.0 is one) twice with two."""
    assert calibration_error(np.array([0.05, 0.05, 0.9, 1.0]), np.array([True, False, True, True])) == pytest.approx((0.9 + 0.1) / 4)
    sure = np.random.default_rng(2).random(20_000)
    assert calibration_error(sure, np.random.default_rng(3).random(20_000) < sure) < 0.02


def test_an_interval_takes_what_belongs_together_together():
    """Ten copies of each text say no more than one: the interval is as wide, not a third as wide."""
    values = np.random.default_rng(4).normal(size=30)
    one = np.diff(clustered_interval(lambda i: float(values[i].mean()), np.arange(30)))
    ten = np.tile(values, 10)
    many = np.diff(clustered_interval(lambda i: float(ten[i].mean()), np.tile(np.arange(30), 10)))
    assert many == pytest.approx(one, rel=0.02) and one == pytest.approx(2 * 1.96 * values.std() / np.sqrt(30), rel=0.1)
    assert np.isnan(clustered_interval(lambda i: float("nan"), np.arange(5))).all()

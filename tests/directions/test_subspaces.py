"""Subspaces: what is explained of what, how stable, how they overlap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg

from emo_mlflow.directions.readouts import differences, leading_axes
from emo_mlflow.directions.subspaces import (
    bootstrap_cosines,
    fit_subspaces,
    largest_angle,
    overlap,
    principal_axes,
    random_overlaps,
    stability,
)
from emo_mlflow.errors import UserError

MANY = ["joy"] * 60 + ["neutral"] * 60


def noisy(shares: tuple[float, ...], n: int = 60, d: int = 20, seed: int = 0) -> np.ndarray:
    """[2n, 1, d]: the first n rows vary along the first axes with these standard deviations, all have unit noise."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(2 * n, d))
    values[:n, : len(shares)] += rng.normal(size=(n, len(shares))) * shares
    return values[:, None].astype(np.float32)


@pytest.mark.parametrize("d", [7, 300])
def test_shares_are_of_the_whole_variance(d):
    """Guards: a ratio over the kept components only, which always sums to 1 (as the first system had it)."""
    values = noisy((5.0, 3.0), d=d)
    found = fit_subspaces(values, MANY, "neutral", 4)
    rows = differences(values[:, 0].astype(float), np.array(MANY) == "joy")
    singular = linalg.svd(rows, compute_uv=False)
    np.testing.assert_allclose(found.explained["joy"][0], (singular**2)[:4] / (rows**2).sum(), rtol=1e-5)
    assert found.explained["joy"].sum() < 0.99
    np.testing.assert_allclose(found.bases["joy"][0] @ found.bases["joy"][0].T, np.eye(4), atol=1e-5)


def test_displacement_is_part_of_the_subspace():
    """Guards: centring the differences, which takes the emotion itself out of its subspace."""
    values = noisy(())
    values[:60, 0, 3] += 6.0
    axes, shares = principal_axes(values[:, 0].astype(float), np.array(MANY) == "joy", 2)
    assert abs(axes[0, 3]) > 0.97 and shares[0] > 0.5


@given(st.integers(1, 8), st.integers(1, 12), st.integers(1, 12), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_leading_axes_are_the_svds(k, n, d, seed):
    """Guards the shortcut by inner products, also beyond the rank, where axes are zero."""
    rows = np.random.default_rng(seed).normal(size=(n, d))
    axes, squares = leading_axes(rows, k)
    _, singular, right = linalg.svd(rows, full_matrices=False)
    rank = min(k, n, d)
    np.testing.assert_allclose(squares, np.pad(singular[:rank] ** 2, (0, k - rank)), rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(np.abs((axes[:rank] * right[:rank]).sum(axis=1)), 1, atol=1e-6)
    assert not axes[rank:].any()


def test_axes_of_texts_that_do_not_differ_are_zero():
    """Guards: a crash at layer 0 with the last token, which is the same full stop in every text."""
    axes, shares = principal_axes(np.ones((6, 5)), np.arange(6) < 3, 2)
    assert not axes.any() and not shares.any()


@given(st.integers(1, 5), st.integers(0, 50))
@settings(max_examples=30, deadline=None)
def test_overlap_and_angles_are_scipys(k, seed):
    """Guards the formula of principal angles, for every leading k."""
    rng = np.random.default_rng(seed)
    first, second = (linalg.qr(rng.normal(size=(9, 5)), mode="economic")[0].T for _ in range(2))
    cosines = first @ second.T
    angles = linalg.subspace_angles(first[:k].T, second[:k].T)
    assert overlap(cosines)[k - 1] == pytest.approx((np.cos(angles) ** 2).mean())
    assert largest_angle(cosines)[k - 1] == pytest.approx(np.degrees(angles.max()), abs=1e-4)


def test_bootstrap_is_of_resampled_texts():
    """Guards the algebra that never forms a resample: the same draws, formed and decomposed, give the same cosines."""
    values = noisy((4.0, 2.0), n=15, d=30)[:, 0].astype(float)
    positive = np.arange(30) < 15
    axes, _ = principal_axes(values, positive, 3)
    fast = bootstrap_cosines(values, positive, axes, 4, seed=5)
    generator = np.random.default_rng([5, 15, 15])
    for draw in range(4):
        rows = np.repeat(np.arange(15), generator.multinomial(15, np.full(15, 1 / 15)))
        others = np.repeat(np.arange(15, 30), generator.multinomial(15, np.full(15, 1 / 15)))
        resampled = values[rows] - values[others].mean(axis=0)
        expected = linalg.svd(resampled, full_matrices=False)[2][:3] @ axes.T
        np.testing.assert_allclose(np.abs(fast[draw]), np.abs(expected), atol=1e-8)


def test_stability_tells_structure_from_noise():
    """Guards: a figure that calls any subspace stable, or none."""
    structured = noisy((30.0, 10.0))
    fitted = fit_subspaces(structured, MANY, "neutral", 3)
    table = stability(structured, MANY, "neutral", fitted, 40).set_index("k")
    assert table.loc[1, "stability"] > 0.97 and table.loc[2, "stability"] > 0.95 and table.loc[3, "stability"] < 0.9
    assert table.loc[3, "angle_median"] > 25 > table.loc[2, "angle_median"]
    assert (table["stability_low"] <= table["stability_high"]).all() and table["explained"].is_monotonic_increasing
    noise = noisy(())
    table = stability(noise, MANY, "neutral", fit_subspaces(noise, MANY, "neutral", 3), 40).set_index("k")
    assert table.loc[3, "stability"] < 0.8


@pytest.mark.parametrize("d", [16, 200])
def test_random_subspaces_overlap_by_k_over_d(d):
    """Guards the null: random subspaces of few dimensions overlap by more than nothing."""
    draws = random_overlaps(4, d, 3000, seed=0)
    np.testing.assert_allclose(draws.mean(axis=0), np.arange(1, 5) / d, rtol=0.12)


def test_k_beyond_the_texts_is_refused():
    """Guards: components of nothing; the message says which emotion and how many there can be."""
    with pytest.raises(UserError, match=r"k=4 components: 'joy' has 3 texts .* k can be 1 to 3"):
        fit_subspaces(noisy((), n=3), ["joy"] * 3 + ["neutral"] * 3, "neutral", 4)
    with pytest.raises(UserError, match="k can be 1 to 5"):
        fit_subspaces(noisy((), d=5), MANY, "neutral", 6)

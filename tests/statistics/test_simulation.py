"""What the statistics promise, held against data whose truth is known. Seeds are fixed; bounds are those promised, not fitted."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from emo_mlflow.statistics import (
    corrected,
    grid_mean,
    paired_effects,
    power,
    random_effects,
    required_n,
    searched_p,
    specific_effects,
)

SIMULATIONS = 2000


def effects(n: int, d: float, seed: int, tests: int = SIMULATIONS) -> tuple[np.ndarray, np.ndarray]:
    """Arms whose differences are normal with a true d_z of d."""
    rng = np.random.default_rng(seed)
    baseline = rng.normal(size=(n, tests))
    return baseline, baseline + rng.normal(d, 1.0, size=(n, tests))


@pytest.mark.parametrize("n", [8, 20, 60])
def test_p_values_are_uniform_under_the_null(n: int) -> None:
    """Guards against p-values that are too small or too large: the share below each level is the level."""
    table = paired_effects(*effects(n, 0.0, seed=n), n_bootstrap=50)
    assert stats.kstest(table["p_t"], "uniform").pvalue > 0.01
    for column in ("p_t", "p_wilcoxon", "p_permutation"):
        for level in (0.01, 0.05, 0.2, 0.5):
            attainable = table[column][table[column] <= level].max()
            share = (table[column] <= level).mean()
            error = 3.5 * np.sqrt(level * (1 - level) / SIMULATIONS)
            assert share == pytest.approx(attainable, abs=error + 0.01 * level), (column, level)


def test_false_discoveries_stay_at_their_rate() -> None:
    """Guards against corrections that do not correct: with 90% of tests null, BH at 0.05 errs in 5% of what it finds, and Bonferroni and
    Holm err at all in 5% of families."""
    rng = np.random.default_rng(5)
    families, tests, real = 200, 40, 4
    truth = np.tile(np.arange(tests) < real, families)
    p = paired_effects(*effects(20, 0.0, 6, families * tests), n_bootstrap=2)["p_t"].to_numpy(copy=True)
    p[truth] = stats.norm.sf(rng.normal(3.5, 1.0, families * real)) * 2
    table = corrected(np.clip(p, 0, 1), np.repeat(np.arange(families), tests))
    found = table["p_bh"].to_numpy() < 0.05
    false = (found & ~truth).reshape(families, tests).sum(axis=1)
    rate = (false / np.maximum(found.reshape(families, tests).sum(axis=1), 1)).mean()
    assert 0.03 < rate < 0.06
    assert found[truth].mean() > 0.5
    for column in ("p_bonferroni", "p_holm"):
        wrong = ((table[column].to_numpy() < 0.05) & ~truth).reshape(families, tests).any(axis=1).mean()
        assert wrong < 0.1


@pytest.mark.parametrize(("d", "alpha"), [(0.5, 0.05), (0.3, 0.05), (0.8, 1e-4)])
def test_a_planted_effect_is_found_at_the_power_promised(d: float, alpha: float) -> None:
    """Guards against a power analysis that has nothing to do with the test that it is for."""
    n = required_n(d, alpha)
    found = (paired_effects(*effects(n, d, seed=n), n_bootstrap=2)["p_t"] < alpha).mean()
    assert found == pytest.approx(float(power(d, n, alpha)), abs=0.03)
    assert found >= 0.77


@pytest.mark.parametrize("d", [0.0, 0.5])
@pytest.mark.parametrize("n", [6, 20, 60])
def test_intervals_cover_what_they_say(n: int, d: float) -> None:
    """Guards against bootstrap intervals as short as the plain ones, which cover 92.8% (the mean) and 91% (d) at n = 20."""
    baseline, patched = effects(n, d, seed=11)
    table = paired_effects(baseline, patched)
    for what, truth in (("diff", d), ("d", d)):
        low, high = table[f"{what}_low"], table[f"{what}_high"]
        assert ((low <= truth) & (truth <= high)).mean() == pytest.approx(0.95, abs=0.018), what


SCORES = {"null": (-3.5, -3.5, 1.0), "rise": (-4.0, -2.6, 1.0), "rare": (-6.5, -6.5, 0.97)}


def score_like(world: str, n: int, tests: int, seed: int) -> np.ndarray:
    """Differences of two arms of scores near 0: nothing changes; all rise; or 3 prompts of 100 rise much and the rest do not."""
    rng = np.random.default_rng(seed)
    before, after, share = SCORES[world]
    prompt = rng.normal(0, 1.2, size=(n, tests))
    arms = [1 / (1 + np.exp(-(level + prompt + rng.normal(size=(n, tests))))) for level in (before, after)]
    event = 1 / (1 + np.exp(-rng.normal(-1.5, 1.5, size=(n, tests))))
    return np.where(rng.random((n, tests)) < share, arms[1], event) - arms[0]


# Coverage of 95% intervals of the mean, in percent: what was simulated (docs/statistics.md), rounded down.
@pytest.mark.parametrize(
    ("world", "n", "least"),
    [("null", 6, 95), ("null", 30, 94), ("null", 225, 92), ("rise", 6, 85), ("rise", 30, 91), ("rise", 225, 92)],
)
def test_intervals_of_scores_near_0_cover_what_the_documentation_says(world: str, n: int, least: int) -> None:
    """Guards against BCa intervals of few prompts: 89% of nothing and 87% of a rise at n = 6, 87% of nothing at n = 30."""
    truth = score_like(world, 200_000, 1, 0).mean()
    difference = score_like(world, n, SIMULATIONS, n)
    table = paired_effects(np.zeros_like(difference), difference, 1000)
    covered = ((table["diff_low"] <= truth) & (truth <= table["diff_high"])).mean()
    assert 100 * covered >= least


@pytest.mark.parametrize("n", [6, 8, 30, 225])
def test_sign_flips_hold_their_level_for_scores_near_0(n: int) -> None:
    """Guards against a test that rejects more than it says: with skewed scores, and with rare events, which mislead the t test."""
    for world in ("null", "rare"):
        difference = score_like(world, n, SIMULATIONS, n)
        if world == "rare":  # what happens in either arm happens as often in the other: nothing to find
            difference = difference * np.random.default_rng(n).choice([-1, 1], difference.shape)
        p = paired_effects(np.zeros_like(difference), difference, 2)["p_permutation"]
        for level in (0.05, 0.01, 0.001):
            assert (p <= level).mean() <= level + 3.5 * np.sqrt(level / SIMULATIONS), (world, level)


@pytest.mark.parametrize(("n", "n_draws"), [(8, 3), (20, 10), (50, 50)])
def test_specific_effects_cover_over_prompts_and_draws(n: int, n_draws: int) -> None:
    """Guards against pooling draws as independent samples, whose intervals ignore that all prompts share a draw."""
    rng = np.random.default_rng(n)
    prompt = rng.normal(size=(n, SIMULATIONS))
    draw = rng.normal(0, 0.5, size=(n_draws, 1, SIMULATIONS))
    draws = 0.5 * prompt + draw + rng.normal(0, 0.7, size=(n_draws, n, SIMULATIONS))
    own = 0.4 + prompt + rng.normal(0, 0.7, size=(n, SIMULATIONS))
    table = specific_effects(own, draws)
    covered = ((table["beyond_mean_low"] <= 0.4) & (table["beyond_mean_high"] >= 0.4)).mean()
    # Few draws: the degrees of freedom are estimated, and the interval errs on the wide side.
    assert 0.935 <= covered <= (0.985 if n_draws < 10 else 0.965)
    pooled = np.sqrt((own - draws.mean(axis=0)).var(axis=0, ddof=1) / n)
    ignoring_draws = (
        np.abs(own.mean(axis=0) - draws.mean(axis=(0, 1)) - 0.4) <= stats.t.ppf(0.975, n - 1) * pooled
    ).mean()
    assert ignoring_draws < covered


@pytest.mark.parametrize("sign", [1, -1, 0])
def test_specificity_p_is_valid_under_the_null(sign: int) -> None:
    """Guards against p = 0 from few draws, and against a direction that is one of the random ones, which all shift one way, being called
    specific."""
    rng = np.random.default_rng(3)
    directions = -0.2 + rng.normal(0, 0.3, size=(20, 1, SIMULATIONS))
    values = directions + rng.normal(size=(20, 12, SIMULATIONS))
    table = specific_effects(values[0], values[1:], sign)
    assert table["p"].min() == table["smallest_p"].iloc[0] == (1 if sign else 2) / 20
    for level in (0.05, 0.1, 0.5):
        attainable = 0 if level < table["smallest_p"].iloc[0] else level
        error = 3.5 * np.sqrt(level * (1 - level) / SIMULATIONS)
        assert (table["p"] <= level + 1e-9).mean() == pytest.approx(attainable, abs=error)


def test_the_distance_from_the_mean_draw_is_no_test() -> None:
    """Guards against reading beyond_mean's interval as one: of directions that are random themselves, half or more are beyond it."""
    rng = np.random.default_rng(8)
    values = rng.normal(0, 0.5, size=(31, 1, SIMULATIONS)) + rng.normal(size=(31, 45, SIMULATIONS))
    table = specific_effects(values[0], values[1:], 1)
    excluded = (table["beyond_mean_low"] > 0) | (table["beyond_mean_high"] < 0)
    assert excluded.mean() > 0.4 and (table["p"] <= 0.05).mean() < 0.05


def test_the_best_of_a_search_is_valid_among_controls_that_search() -> None:
    """Guards against a search whose best is compared with single places of the controls."""
    rng = np.random.default_rng(9)
    best = rng.normal(size=(SIMULATIONS, 20, 24)).max(axis=2)
    p = np.array([searched_p(row[0], row[1:]) for row in best])
    assert (p <= 0.05).mean() == pytest.approx(0.05, abs=3.5 * np.sqrt(0.05 * 0.95 / SIMULATIONS))
    heads = rng.normal(size=(SIMULATIONS, 63))
    p = np.array([searched_p(row[:3].max(), row[3:], 3) for row in heads])
    assert p.min() == pytest.approx(3 / 63)
    assert (p <= 0.05).mean() == pytest.approx(3 / 63, abs=3.5 * np.sqrt(0.05 * 0.95 / SIMULATIONS))


@pytest.mark.parametrize("shape", [(4, 4), (8, 8), (8, 3)])
def test_grids_of_layers_cover_over_both_models_layers(shape: tuple[int, int]) -> None:
    """Guards against pairs of layers counted as independent: of 8 by 8 such intervals cover half of what they say."""
    rng = np.random.default_rng(shape[1])
    a, b = shape
    grids = 0.3 + rng.normal(0, 0.2, size=(1000, a, 1)) + rng.normal(0, 0.2, size=(1000, 1, b)) + rng.normal(0, 0.1, size=(1000, a, b))
    ends = np.array([grid_mean(grid)[1:] for grid in grids])
    assert ((ends[:, 0] <= 0.3) & (ends[:, 1] >= 0.3)).mean() >= 0.93
    if shape == (8, 8):
        flat = paired_effects(np.zeros((64, 1000)), grids.reshape(1000, 64).T, 200)
        assert ((flat["diff_low"] <= 0.3) & (flat["diff_high"] >= 0.3)).mean() < 0.65


def test_random_effects_interval_covers_the_mean_over_models() -> None:
    """Guards against intervals from the fixed effect, or from a normal with three models."""
    rng = np.random.default_rng(4)
    variances = rng.uniform(0.02, 0.2, size=(4, SIMULATIONS))
    estimates = 0.3 + rng.normal(0, 0.3, size=(4, SIMULATIONS)) + rng.normal(size=(4, SIMULATIONS)) * np.sqrt(variances)
    table = random_effects(estimates, variances)
    assert 0.935 <= ((table["low"] <= 0.3) & (table["high"] >= 0.3)).mean() <= 0.985

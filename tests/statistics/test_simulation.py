"""What the statistics promise, held against data whose truth is known. Seeds are fixed; bounds are those promised, not fitted."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from emo_mlflow.statistics import corrected, paired_effects, power, random_effects, required_n, specific_effects

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
def test_intervals_cover_what_they_say(d: float) -> None:
    """Guards against bootstrap intervals as short as the plain ones, which cover 92.8% (the mean) and 91% (d) at n = 20."""
    baseline, patched = effects(20, d, seed=11)
    table = paired_effects(baseline, patched)
    for what, truth in (("diff", d), ("d", d)):
        for prefix in ("", "bca_"):
            low, high = table[f"{what}_{prefix}low"], table[f"{what}_{prefix}high"]
            assert ((low <= truth) & (truth <= high)).mean() == pytest.approx(0.95, abs=0.015), (what, prefix)


@pytest.mark.parametrize(("n", "n_draws"), [(8, 3), (20, 10), (50, 50)])
def test_specific_effects_cover_over_prompts_and_draws(n: int, n_draws: int) -> None:
    """Guards against pooling draws as independent samples, whose intervals ignore that all prompts share a draw."""
    rng = np.random.default_rng(n)
    prompt = rng.normal(size=(n, SIMULATIONS))
    draw = rng.normal(0, 0.5, size=(n_draws, 1, SIMULATIONS))
    draws = 0.5 * prompt + draw + rng.normal(0, 0.7, size=(n_draws, n, SIMULATIONS))
    own = 0.4 + prompt + rng.normal(0, 0.7, size=(n, SIMULATIONS))
    table = specific_effects(own, draws)
    covered = ((table["specific_low"] <= 0.4) & (table["specific_high"] >= 0.4)).mean()
    # Few draws: the degrees of freedom are estimated, and the interval errs on the wide side.
    assert 0.935 <= covered <= (0.985 if n_draws < 10 else 0.965)
    pooled = np.sqrt((own - draws.mean(axis=0)).var(axis=0, ddof=1) / n)
    ignoring_draws = (
        np.abs(own.mean(axis=0) - draws.mean(axis=(0, 1)) - 0.4) <= stats.t.ppf(0.975, n - 1) * pooled
    ).mean()
    assert ignoring_draws < covered


def test_specificity_p_is_valid_under_the_null() -> None:
    """Guards against p = 0 from few draws, and against an emotion that is one of the random directions being called specific."""
    rng = np.random.default_rng(3)
    directions = rng.normal(0, 0.3, size=(20, 1, SIMULATIONS))
    values = directions + rng.normal(size=(20, 12, SIMULATIONS))
    table = specific_effects(values[0], values[1:])
    assert table["p"].min() == table["smallest_p"].iloc[0] == 1 / 20
    for level in (0.05, 0.1, 0.5):
        assert (table["p"] <= level).mean() == pytest.approx(
            level, abs=3.5 * np.sqrt(level * (1 - level) / SIMULATIONS)
        )


def test_random_effects_interval_covers_the_mean_over_models() -> None:
    """Guards against intervals from the fixed effect, or from a normal with three models."""
    rng = np.random.default_rng(4)
    variances = rng.uniform(0.02, 0.2, size=(4, SIMULATIONS))
    estimates = 0.3 + rng.normal(0, 0.3, size=(4, SIMULATIONS)) + rng.normal(size=(4, SIMULATIONS)) * np.sqrt(variances)
    table = random_effects(estimates, variances)
    assert 0.935 <= ((table["low"] <= 0.3) & (table["high"] >= 0.3)).mean() <= 0.985

"""The power and the cost of the test against random directions are those that simulation gives."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from emo_mlflow.statistics.draw_power import (
    Spread,
    draw_power,
    expected_draws,
    measured_spread,
    prompts_needed,
    smallest_effect,
    unreached,
)

STUDIES = 20_000
WORLDS = [Spread(0.05, 0.3), Spread(0.12, 0.35), Spread(0.3, 0.5), Spread(0.0, 1.0)]


def stopped_at(d: float | None, n: int, draws: int, world: Spread, seed: int = 0) -> np.ndarray:
    """Which draw reaches the direction first, from 1; draws + 1 if none does. Scores are normal, prompts crossed with directions."""
    rng = np.random.default_rng(seed)
    own = d + rng.normal(0, 1 / np.sqrt(n), STUDIES) if d is not None else _directions(1, n, world, rng)[:, 0]
    reached = _directions(draws, n, world, rng) >= own[:, None]
    return np.where(reached.any(axis=1), reached.argmax(axis=1) + 1, draws + 1)


def _directions(count: int, n: int, world: Spread, rng: np.random.Generator) -> np.ndarray:
    """Means over prompts of random directions, [STUDIES, count]."""
    return rng.normal(0, world.spread, (STUDIES, count)) + rng.normal(0, world.noise / np.sqrt(n), (STUDIES, count))


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(("d", "n", "draws"), [(0.31, 30, 19), (0.47, 90, 19), (0.2, 60, 59), (None, 30, 19)])
def test_power_and_cost_agree_with_simulation(world, d, n, draws):
    """Guards: a factor of R, of n or of the direction's own noise that is missing from the integral."""
    stops = stopped_at(d, n, draws, world)
    error = 3.5 * 0.5 / np.sqrt(STUDIES)
    chances = unreached(d, n, draws, world)
    assert chances[0] == pytest.approx(1)
    for count in (1, 5, draws):
        assert (stops > count).mean() == pytest.approx(chances[count], abs=error)
    met = np.minimum(stops, draws)
    assert met.mean() == pytest.approx(expected_draws(d, n, draws, world), abs=3.5 * met.std() / np.sqrt(STUDIES))
    if d is not None:
        assert draw_power(d, n, draws, world) == chances[draws]


@pytest.mark.parametrize(("world", "n"), [(Spread(0, 1), 87), (Spread(0.1, 1), 218), (Spread(0.05, 0.3), 29)])
def test_prompts_needed_for_a_small_effect(world, n):
    """By numerical integration elsewhere: what d = 0.3 needs for power 0.8 against 19 draws."""
    assert prompts_needed(0.3, 19, 0.8, world) == n
    assert draw_power(0.3, n - 1, 19, world) < 0.8 <= draw_power(0.3, n, 19, world)


def test_more_prompts_do_not_help_against_a_wide_spread():
    world = Spread(0.3, 0.3)
    assert draw_power(0.3, 10**6, 19, world) == pytest.approx(
        float(np.mean((np.random.default_rng(0).normal(0, 0.3, (STUDIES, 19)) < 0.3).all(axis=1))), abs=0.01
    )
    with pytest.raises(ValueError, match=r"d = 0.3 power 0.8: draws of spread 0.3 allow 0.04"):
        prompts_needed(0.3, 19, 0.8, world)


@pytest.mark.parametrize("target", [0.5, 0.8])
@pytest.mark.parametrize("n", [15, 30, 225])
def test_the_smallest_effect_has_the_power_asked_for(target, n):
    d = smallest_effect(n, 19, target)
    assert draw_power(d, n, 19) == pytest.approx(target, abs=1e-4) and draw_power(d - 1e-3, n, 19) < target


def test_a_null_direction_needs_three_and_a_half_draws():
    assert expected_draws(None, 30, 19) == pytest.approx(sum(1 / r for r in range(1, 20)))


def test_the_spread_is_measured_from_a_finished_test():
    rng = np.random.default_rng(4)
    found = []
    for _ in range(40):
        prompts = rng.normal(0, 3, 90)
        draws = prompts + rng.normal(0, 0.4, (19, 1)) + rng.normal(0, 0.8, (19, 90)) - 0.5
        d, world = measured_spread(prompts + 0.6 - 0.5 + rng.normal(0, 2, 90), draws)
        found.append((d, world.spread, world.noise))
    assert np.mean(found, axis=0) == pytest.approx([0.3, 0.2, 0.4], rel=0.1)


def test_a_spread_that_cannot_be_measured():
    with pytest.raises(ValueError, match="1 draws on 5 prompts"):
        measured_spread(np.arange(5.0), np.ones((1, 5)))
    with pytest.raises(ValueError, match="no unit"):
        measured_spread(np.arange(5.0), np.arange(5.0) + np.ones((3, 1)))


def test_the_formula_holds_roughly_for_skewed_scores():
    """Scores in [0, 1], most of them near 0: rare events move the power that normal scores have by less than 0.1 at n = 30."""
    rng = np.random.default_rng(2)

    def scores(studies: int, n: int, gain: float) -> np.ndarray:
        log_odds = (
            rng.normal(-7, 3, (studies, 1, n))
            + rng.normal(0, 0.4, (studies, 20, 1))
            + rng.normal(0, 1.6, (studies, 20, n))
        )
        log_odds[:, 0] += gain
        return special.expit(log_odds)

    for gain in (1.43, 2.41):
        measured = [measured_spread(study[0], study[1:]) for study in scores(100, 225, gain)]
        d, spread, noise = np.mean([(d, world.spread, world.noise) for d, world in measured], axis=0)
        means = scores(1500, 30, gain).mean(axis=2)
        power = (means[:, 0] > means[:, 1:].max(axis=1)).mean()
        assert draw_power(d, 30, 19, Spread(spread, noise)) == pytest.approx(power, abs=0.1)

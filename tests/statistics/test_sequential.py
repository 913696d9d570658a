"""The sequential test against random directions is exact, and its procedures decide what all draws would decide."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import special

from emo_mlflow.statistics.corrections import holm as holm_adjusted
from emo_mlflow.statistics.sequential import (
    DrawTest,
    Duel,
    Looks,
    draw_test,
    draws_needed,
    duel,
    fixed_sequence,
    holm,
    wanted,
)

LIMIT = 19
ONE, SEVERAL = Looks((30,)), Looks((15, 30, 90))


def scores(
    rng: np.random.Generator, n: int, *, gain: float = 0.0, spread: float = 0.4, depths: int = 1, draws: int = LIMIT
) -> np.ndarray:
    """A direction and its draws, [1 + draws, depths, n]: skewed scores in [0, 1], most near 0, prompts crossed with draws.

    Args:
        gain: what the direction adds to the log-odds at the first depth.
        spread: of the draws, on the log-odds; the direction without gain is a draw like the others.
    """
    log_odds = (
        rng.normal(-7, 3, n)
        + rng.normal(0, spread, (1 + draws, depths, 1))
        + rng.normal(0, 1.6, (1 + draws, depths, n))
    )
    log_odds[0, 0] += gain
    return special.expit(log_odds).astype(np.float32)


def simulated(studies: int, looks: Looks, seed: int, **world: float) -> list[DrawTest]:
    """Tests of as many directions in as many worlds."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(studies):
        own, *draws = scores(rng, looks.prompts[-1], **world)
        found.append(draw_test(own, draws, looks))
    return found


@pytest.mark.parametrize("spread", [0.15, 0.4, 0.8])
@pytest.mark.parametrize(
    ("looks", "depths"), [(ONE, 1), (Looks((15,)), 4), (SEVERAL, 1), (Looks((5, 10, 40), clear=0.7), 2)]
)
def test_a_random_direction_is_rejected_in_five_percent(looks, depths, spread):
    """Guards: an early look, or a search over depths, that favours the direction. At every level 1/r that p can have, at most 1/r of them."""
    studies = 2000
    p = np.array([test.p for test in simulated(studies, looks, 7 + depths, spread=spread, depths=depths)])
    assert p.min() == 1 / (LIMIT + 1)
    for rank in (2, 5, 10, 20):
        assert (p <= 1 / rank + 1e-12).mean() <= 1 / rank + 3 * math.sqrt((rank - 1) / studies) / rank, rank


# d = 0.31 and 0.47 standard deviations of the difference direction minus draws, in this world.
@pytest.mark.parametrize(
    ("looks", "small", "large"), [(ONE, 0.56, 0.96), (Looks((90,)), 0.73, 0.99), (SEVERAL, 0.73, 0.99)]
)
def test_power_in_a_skewed_world(looks, small, large):
    """Near what another simulation of the same designs gave (0.56 / 0.96 with 30 prompts, 0.73 / 0.99 with 90): its world, like this one, is fitted
    to real sweeps. Early looks at 15 and 30 prompts cost no more than 0.04 of the power of 90."""
    studies = 500
    for gain, power in ((1.43, small), (2.41, large)):
        found = np.mean([not test.reached for test in simulated(studies, looks, 3, gain=gain)])
        assert found == pytest.approx(power, abs=0.04 + 3 * math.sqrt(power * (1 - power) / studies))


def test_early_looks_save_most_texts():
    """What they are for: at 0.47 standard deviations the draws need less than a third of the texts of 90 prompts each."""
    rng = np.random.default_rng(1)
    prompts = []
    for _ in range(100):
        own, *draws = scores(rng, 90, gain=2.41)
        prompts += [duel(own, draw, SEVERAL).prompts for draw in draws]
    assert np.mean(prompts) < 30


def test_looks_treat_both_sides_alike():
    """What exactness rests on: of two directions at most one beats the other, wherever the comparison ends."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        first, second = scores(rng, 40, depths=3, draws=1, spread=1.0)
        if rng.random() < 0.3:
            first[:, rng.integers(40, size=10)] = np.nan
        one, other = (duel(a, b, Looks((5, 10, 40), 1.0)) for a, b in ((first, second), (second, first)))
        assert {one.outcome, other.outcome} == {"beaten", "reached"} and one.prompts == other.prompts


def test_a_tie_counts_against_the_direction():
    """Guards: texts that no direction changes, or a greedy loop that all end in, as evidence of specificity."""
    same = np.full(30, 0.1, np.float32)
    assert duel(same, same, ONE).outcome == "reached"
    rng = np.random.default_rng(2)
    values = rng.random(30)
    assert duel(values, rng.permutation(values), ONE).outcome == "reached"  # equal but for the order of summing
    assert draw_test(values, [values] * LIMIT, ONE) == DrawTest(1, reached=True)


def test_an_early_look_that_is_a_tie_or_constant():
    nothing, little = np.zeros(90), np.full(90, 1e-3)
    assert duel(nothing, nothing, SEVERAL) == Duel("reached", 90)
    assert duel(little, nothing, SEVERAL) == Duel("beaten", 15)


def test_missing_scores():
    """A prompt without a score counts on neither side; a draw without any has reached the direction; a direction without any has no test."""
    own, draw = np.array([0.9, 0.1, 0.1, 0.1]), np.array([np.nan, 0.2, 0.2, 0.2])
    assert duel(own, draw, Looks((4,))).outcome == "reached"
    assert duel(own, np.full(4, np.nan), Looks((4,))).outcome == "reached"
    test = draw_test(np.full(4, np.nan), [draw], Looks((4,)))
    assert math.isnan(test.p) and test.reason == "no scores"
    assert {step.decision for step in fixed_sequence({"joy": test}).values()} == {"kept"}
    assert holm({"joy": test, "fear": DrawTest(39)})["fear"].decision == "rejected"
    assert math.isnan(fixed_sequence({"joy": test})["joy"].adjusted)


def test_depths_are_searched_by_both():
    """Guards: a direction that may choose its depth, against draws that may not."""
    own = np.array([[0.1] * 4, [0.5] * 4])
    draw = np.array([[0.6] * 4, [0.1] * 4])
    assert duel(own, draw, Looks((4,))).outcome == "reached"
    with pytest.raises(ValueError, match="2 depths and the draw 1"):
        duel(own, draw[:1], Looks((4,)))


def test_a_pack_gives_what_one_by_one_gives():
    """Guards: a p-value that depends on how many draws were generated together."""
    rng = np.random.default_rng(5)
    for _ in range(50):
        own, *draws = scores(rng, 30, gain=1.0)
        whole = draw_test(own, draws, ONE)
        for size in (1, 4, 7):
            seen: list[np.ndarray] = []
            while not (test := draw_test(own, seen, ONE)).reached and len(seen) < LIMIT:
                seen = draws[: len(seen) + size]
            assert test == whole


def written(draws: list[np.ndarray], prompts: dict[int, int]) -> list[np.ndarray]:
    return [draws[number][:, : prompts[number]] for number in sorted(prompts)]


def test_what_is_wanted_next_leads_to_the_whole_answer():
    """Guards: a loop that ends early, asks for what is there, or writes draws that no longer count."""
    rng = np.random.default_rng(6)
    packs = []
    for study in range(40):
        own, *draws = scores(rng, 90, gain=2.0 * (study % 2))
        have: dict[int, int] = {}
        rounds = 0
        while needed := wanted(own, written(draws, have), SEVERAL, LIMIT):
            assert all(have.get(number, 0) < prompts for number, prompts in needed.items())
            have |= needed
            rounds += 1
        whole = draw_test(own, draws, SEVERAL)
        assert draw_test(own, written(draws, have), SEVERAL) == whole
        assert len(have) <= max(2 * whole.draws, 1) and rounds <= 15
        packs.append(len(have) - whole.draws)
    assert np.mean(packs) < 3
    assert wanted(own, [], SEVERAL, LIMIT) == {0: 15}


@pytest.mark.parametrize(("level", "fewest"), [(0.05, 19), (0.05 / 2, 39), (0.05 / 3, 59), (0.01, 99)])
def test_draws_needed(level, fewest):
    assert draws_needed(level) == fewest


def test_the_sequence_stops_at_the_first_that_is_kept():
    steps = fixed_sequence(
        {"anger": DrawTest(19), "joy": DrawTest(4, reached=True), "fear": DrawTest(19), "awe": DrawTest()}
    )
    assert [step.decision for step in steps.values()] == ["rejected", "kept", "untested", "untested"]
    assert [step.adjusted for step in steps.values()][:2] == [0.05, 0.25]
    assert steps["fear"].p == 0.05 and math.isnan(steps["fear"].adjusted) and math.isnan(steps["awe"].p)


def test_the_sequence_waits_for_the_first():
    steps = fixed_sequence({"anger": DrawTest(7), "joy": DrawTest()})
    assert (steps["anger"].decision, steps["anger"].limit, steps["joy"].decision) == ("open", 19, "waiting")


def test_a_draw_beyond_the_limit_changes_nothing():
    """Shared draws may be more than one emotion needs: what the twentieth does, does not count against it."""
    assert fixed_sequence({"anger": DrawTest(20, reached=True)})["anger"].decision == "rejected"


def test_adjusted_p_never_falls_along_the_sequence():
    steps = fixed_sequence({"anger": DrawTest(25, reached=True), "joy": DrawTest(50, reached=True)})
    assert [step.adjusted for step in steps.values()] == [1 / 25, 1 / 25]


@pytest.mark.parametrize("m", [1, 2, 3])
def test_holm_decides_what_all_draws_would(m):
    """Guards: an early stop that changes a decision. Against every combination of the draws that stop the m directions, by Holm's own p-values,
    whichever emotion is worked at first."""
    limit = draws_needed(0.05 / m)
    stops = sorted({1, 2, 18, 19, 20, 21, 38, 39, 40, 41, 58, 59, 60} & set(range(1, limit + 2)))
    for first in itertools.product(stops, repeat=m):
        full = holm_adjusted(np.array([1 / stop for stop in first])) <= 0.05 + 1e-12
        for order in itertools.permutations(range(m)):
            tests = {f"e{i}": DrawTest() for i in range(m)}
            steps = holm(tests)
            while opened := [i for i in order if steps[f"e{i}"].decision == "open"]:
                step = steps[f"e{opened[0]}"]
                reached = first[opened[0]] <= step.limit
                tests[f"e{opened[0]}"] = DrawTest(first[opened[0]] if reached else step.limit, reached)
                steps = holm(tests)
            assert [steps[f"e{i}"].decision == "rejected" for i in range(m)] == list(full), first
            assert all(step.decision in ("rejected", "kept") for step in steps.values())


def test_holm_needs_fewer_draws_for_each_that_is_rejected():
    steps = holm({"anger": DrawTest(59), "joy": DrawTest(12), "fear": DrawTest(30, reached=True)})
    assert (steps["anger"].decision, steps["anger"].adjusted) == ("rejected", pytest.approx(0.05))
    assert (steps["joy"].decision, steps["joy"].limit) == ("open", 39)
    assert steps["fear"].decision == "waiting"  # its p of 1/30 counts once joy is rejected
    assert (
        holm({"anger": DrawTest(59), "joy": DrawTest(39), "fear": DrawTest(30, reached=True)})["fear"].decision
        == "rejected"
    )


@pytest.mark.parametrize(
    ("prompts", "clear"), [((), 1.0), ((1, 5), 1.0), ((10, 10), 1.0), ((30, 15), 1.0), ((30,), 0.0)]
)
def test_looks_that_make_no_sense(prompts, clear):
    with pytest.raises(ValueError, match=r"looks|clear"):
        Looks(prompts, clear)

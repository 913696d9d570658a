"""A study's tests: how often a null direction is called specific, what a broken control is worth, and which texts are asked for."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from study_world import EMOTIONS, World, design_of

from emo_mlflow.studying.procedure import run_tests
from emo_mlflow.studying.protocol import BASELINE, Arm
from emo_mlflow.studying.run import is_void
from emo_mlflow.studying.verdicts import answers, rung_table

NULL = dict.fromkeys(EMOTIONS, 0.0)


def study(design, world):
    tests = run_tests(design, world, is_void, lambda tests: None)
    return tests, answers(design, world, tests)


def specific_share(repetitions: int, spread: float, level: float, **settings) -> float:
    """How often a study of null emotions calls any of them specific."""
    hits = 0
    for seed in range(repetitions):
        design = design_of(**settings)
        world = World(seed, len(design.prompts), NULL, spread, level)
        hits += any(answer.verdict == "specific" for answer in study(design, world)[1])
    return hits / repetitions


def most(repetitions: int, level: float = 0.05) -> float:
    """The largest share that an error rate of 0.05 gives in all but one of a thousand such simulations."""
    return float(stats.binom.ppf(0.999, repetitions, level)) / repetitions


@pytest.mark.parametrize("procedure", ["sequence", "holm"])
@pytest.mark.parametrize("n", [8, 30])
def test_a_null_emotion_is_seldom_called_specific(procedure, n):
    """The first comparison called 16 of 18 random directions significant, and more than every random direction."""
    assert specific_share(150, 0.4, -3.5, n=n, procedure=procedure) <= most(150)


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.15, 0.4, 0.8])
@pytest.mark.parametrize("n", [6, 8, 30, 225])
@pytest.mark.parametrize("procedure", ["sequence", "holm"])
def test_a_null_emotion_is_seldom_called_specific_in_every_world(procedure, n, spread):
    assert specific_share(600, spread, -4.0, n=n, procedure=procedure, looks=(n // 2, n) if n > 8 else None) <= most(600)


def test_a_true_effect_is_found_and_named():
    design = design_of()
    found = [study(design, World(seed, 30, {**NULL, "gratitude": 2.5}))[1] for seed in range(20)]
    verdicts = [answer.verdict for result in found for answer in result if answer.emotion == "gratitude"]
    assert verdicts.count("specific") >= 16
    effects = [answer.effect for result in found for answer in result if answer.emotion == "gratitude"]
    assert np.mean([effect.low > 0 for effect in effects]) > 0.8


def test_every_control_must_be_beaten():
    """A direction that beats isotropic draws and not the shuffled ones is not specific: the largest p counts."""
    design = design_of(controls=("isotropic", "shuffled"), emotions=("gratitude",), procedure="sequence")

    class Two(World):
        def scores(self, arm, emotion):
            values = super().scores(arm, emotion)
            return values + (0.5 if arm.control == "shuffled" else 0.0)

    tests, (answer,) = study(design, Two(3, 30, {"gratitude": 2.5}))
    assert tests.rungs["gratitude"]["shuffled"].reached and answer.verdict == "steers"
    assert answer.p == 1.0


def test_a_control_that_breaks_the_text_does_not_count():
    """Its texts cannot express anything, so that to beat them says nothing; nor does it stop the others."""
    design = design_of(controls=("isotropic", "covariance"), emotions=("gratitude",), procedure="sequence")
    world = World(3, 30, {"gratitude": 2.5}, broken={"isotropic": 0.8})
    tests, (answer,) = study(design, world)
    assert tests.void["gratitude"] == {"isotropic"} and answer.verdict == "specific" and answer.draws == 19
    table = rung_table(design, world, tests, [answer])
    assert table.set_index("control")["void"].to_dict() == {"isotropic": True, "covariance": False}
    alone = design_of(controls=("isotropic",), emotions=("gratitude",), procedure="sequence")
    tests, (answer,) = study(alone, World(3, 30, {"gratitude": 2.5}, broken={"isotropic": 0.8}))
    assert answer.verdict == "steers" and "breaks" in tests.rungs["gratitude"]["isotropic"].reason + "every control breaks the text"
    assert np.isnan(answer.p)


def test_the_sequence_stops_at_the_first_emotion_that_is_not_shown():
    design = design_of(procedure="sequence")
    effects = {"gratitude": 0.0, "anger": 2.5, "apology": 2.5}
    seen = [study(design, World(seed, 30, effects))[1] for seed in range(12)]
    stopped = [found for found in seen if found[0].verdict != "specific"]
    assert stopped and all(answer.draws == 0 for found in stopped for answer in found[1:])


def test_draws_serve_all_emotions_where_they_can():
    """With one place and a budget of damage, a random direction's texts are the same for every emotion."""
    world = World(0, 30, dict.fromkeys(EMOTIONS, 2.5))
    study(design_of(), world)
    draws = [arm for arm in world.filled if arm.control]
    assert {arm.emotion for arm in draws} == {None} and len(draws) <= 59
    world = World(0, 30, dict.fromkeys(EMOTIONS, 2.5))
    study(design_of(unit="vector"), world)
    assert {arm.emotion for arm in world.filled if arm.control} == set(EMOTIONS)


def test_texts_are_asked_for_as_needed():
    """A null direction is stopped by its first draws: most of the 57 that could be asked for are not."""
    counts = []
    for seed in range(20):
        world = World(seed, 30, NULL)
        study(design_of(procedure="sequence"), world)
        counts.append(sum(arm.control is not None for arm in world.filled))
        assert {BASELINE, *map(Arm, EMOTIONS)} <= set(world.filled)
    assert np.median(counts) < 10

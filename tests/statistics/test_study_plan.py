"""A plan's power and number of texts are those of studies that are run."""

from __future__ import annotations

import numpy as np
import pytest

from emo_mlflow.statistics.draw_power import TYPICAL, draw_power, expected_draws
from emo_mlflow.statistics.sequential import DrawTest, Looks, draw_test, fixed_sequence, holm, wanted
from emo_mlflow.statistics.study_plan import StudyDesign, expected

ONE, SEVERAL = Looks((30,)), Looks((15, 30, 90))
MANY = 4000


def test_one_emotion_has_the_power_of_the_formula():
    for d in (0.31, 0.47):
        plan = expected(StudyDesign(ONE), [d], simulations=MANY)
        assert plan.found[0] == pytest.approx(draw_power(d, 30, 19), abs=0.03)
        assert plan.texts == pytest.approx(60 + 30 * expected_draws(d, 30, 19), rel=0.03)


@pytest.mark.parametrize(
    "design", [StudyDesign(SEVERAL), StudyDesign(ONE, "holm"), StudyDesign(Looks((5, 15)), depths=4)]
)
@pytest.mark.parametrize("shared", [True, False])
def test_null_directions_are_found_in_five_percent(design, shared):
    design = StudyDesign(design.looks, design.procedure, design.depths, shared)
    assert expected(design, [None] * 3, simulations=MANY).any_found <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / MANY)


def test_shared_draws_are_written_once():
    """Three true effects: the second and the third emotion meet draws whose texts are there."""
    alone, shared = (expected(StudyDesign(ONE, shared=share), [2.0] * 3) for share in (False, True))
    assert alone.all_found == shared.all_found == 1
    assert (alone.texts, shared.texts) == (30 * (1 + 3 + 57), 30 * (1 + 3 + 19))
    assert (alone.draws, shared.draws) == (57, 19)


def test_holm_takes_fewer_draws_from_one_to_the_next():
    plan = expected(StudyDesign(ONE, "holm", shared=False), [3.0] * 3)
    assert plan.draws == 59 + 39 + 19


def test_an_emotion_behind_one_that_is_kept_costs_nothing():
    plan = expected(StudyDesign(ONE), [-5.0, 5.0])
    assert plan.found == (0, 0) and plan.texts == 30 * 3


@pytest.mark.parametrize(("looks", "procedure"), [(ONE, "fixed"), (SEVERAL, "fixed"), (SEVERAL, "holm")])
def test_the_plan_is_what_a_loop_over_draws_does(looks, procedure):
    """The same normal world, run with `wanted` and `draw_test` as a study runs them; packs may add texts, and may not take any."""
    rng = np.random.default_rng(8)
    design = StudyDesign(looks, procedure)
    decide, n, effects = (fixed_sequence if procedure == "fixed" else holm), looks.prompts[-1], (0.47, 0.31, 0.1)
    texts, found = [], []
    for _ in range(80):
        own = rng.normal(0, 1, (3, n)) + np.array(effects)[:, None]
        draws = rng.normal(0, TYPICAL.spread, (3, 59, 1)) + rng.normal(0, TYPICAL.noise, (3, 59, n))
        have: dict[int, int] = {}
        begun, tests = set(), dict.fromkeys(range(3), DrawTest())
        while opened := [i for i, step in decide(tests).items() if step.decision == "open"]:
            i, limit = opened[0], decide(tests)[opened[0]].limit
            begun.add(i)
            seen = [draws[i, r, : have[r]] for r in sorted(have)][:limit]
            have |= {r: max(have.get(r, 0), prompts) for r, prompts in wanted(own[i], seen, looks, limit).items()}
            tests[i] = draw_test(own[i], [draws[i, r, : have[r]] for r in sorted(have)][:limit], looks)
        texts.append(n * (1 + len(begun)) + sum(have.values()))
        found.append([step.decision == "rejected" for step in decide(tests).values()])
    plan = expected(design, effects, simulations=MANY)
    assert np.mean(found, axis=0) == pytest.approx(plan.found, abs=0.15)
    assert 0.93 * plan.texts < np.mean(texts) < 1.15 * plan.texts + looks.prompts[0] * 3

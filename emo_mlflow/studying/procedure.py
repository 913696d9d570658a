"""The tests of a study, in the order that its design fixed: texts are asked for as the tests need them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from emo_mlflow.statistics.moments import Floats
from emo_mlflow.statistics.sequential import DrawTest, Step, draw_test, fixed_sequence, holm, wanted
from emo_mlflow.studying.protocol import BASELINE, Arm, Design
from emo_mlflow.types import Control

EXCLUDED = "every control breaks the text"


class Bank(Protocol):
    """Texts and their scores, written when they are first asked for."""

    def fill(self, asked: Mapping[Arm, int]) -> None:
        """Makes sure that each arm has continued so many of the first prompts."""

    def scores(self, arm: Arm, emotion: str) -> Floats:
        """An emotion's own label on the prompts that an arm has continued, [depths, n]; NaN where a text failed."""

    def broken(self, arm: Arm) -> Floats:
        """How probable it is that each text of an arm is broken, [texts]; NaN where nothing measured it."""


@dataclass
class Tests:
    """The tests so far.

    Attributes:
        rungs: by emotion and control.
        void: controls whose texts are broken, by emotion: their p is reported, and does not count.
        steps: what the procedure says of each emotion.
    """

    rungs: dict[str, dict[Control, DrawTest]] = field(default_factory=dict)
    void: dict[str, set[Control]] = field(default_factory=dict)
    steps: dict[str, Step] = field(default_factory=dict)


def run_tests(design: Design, bank: Bank, is_void: Callable[[Floats, Floats], bool], on_step: Callable[[Tests], None]) -> Tests:
    """Tests every emotion as the design says, and asks the bank for texts until all is decided.

    Args:
        is_void: whether a control's texts, all of an emotion's draws together, are too broken to express anything, beside the direction's own.
        on_step: called after every round of texts.
    """
    n = len(design.prompts)
    bank.fill({BASELINE: n} | {Arm(emotion): n for emotion in design.emotions})
    drawn: dict[str, dict[Control, int]] = {emotion: dict.fromkeys(design.controls, 0) for emotion in design.emotions}
    while True:
        found = _look(design, bank, drawn, is_void)
        on_step(found)
        asked: dict[Arm, int] = {}
        for emotion, step in found.steps.items():
            if step.decision != "open":
                continue
            own = bank.scores(Arm(emotion), emotion)
            for control in design.controls:
                test = found.rungs[emotion][control]
                if control in found.void[emotion] or test.reached:
                    continue
                draws = [bank.scores(design.arm(emotion, control, draw), emotion) for draw in range(drawn[emotion][control])]
                more = wanted(own, draws, design.looks, step.limit)
                asked |= {design.arm(emotion, control, draw): prompts for draw, prompts in more.items()}
                drawn[emotion][control] = max([drawn[emotion][control], *(draw + 1 for draw in more)])
        if not asked:
            return found
        bank.fill(asked)


def _look(
    design: Design, bank: Bank, drawn: Mapping[str, Mapping[Control, int]], is_void: Callable[[Floats, Floats], bool]
) -> Tests:
    found = Tests()
    for emotion in design.emotions:
        own = bank.scores(Arm(emotion), emotion)
        found.rungs[emotion], found.void[emotion] = {}, set()
        for control, count in drawn[emotion].items():
            arms = [design.arm(emotion, control, draw) for draw in range(count)]
            found.rungs[emotion][control] = draw_test(own, [bank.scores(arm, emotion) for arm in arms], design.looks)
            if count and is_void(np.concatenate([bank.broken(arm) for arm in arms]), bank.broken(Arm(emotion))):
                found.void[emotion].add(control)
    together = {
        emotion: combined([test for control, test in rungs.items() if control not in found.void[emotion]])
        for emotion, rungs in found.rungs.items()
    }
    found.steps = (holm if design.procedure == "holm" else fixed_sequence)(together)
    return found


def combined(tests: list[DrawTest]) -> DrawTest:
    """An emotion's test against all of its controls: the direction must beat each, so the largest p counts.

    If each test alone keeps its level, so does the largest p (Berger 1982, the intersection-union test): no correction over controls is needed.
    """
    if not tests:
        return DrawTest(reason=EXCLUDED)
    if reasons := [test.reason for test in tests if test.reason]:
        return DrawTest(reason=reasons[0])
    if reached := [test for test in tests if test.reached]:
        return min(reached, key=lambda test: test.rank)
    return min(tests, key=lambda test: test.draws)

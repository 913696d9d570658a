"""The exact test of a direction against random ones that are drawn one after another, and its procedures over several emotions.

The direction meets the random directions in their order. It is stopped by the first that it does not beat, and then p = 1 / r, where r is the
number of that draw; after R draws without one, p = 1 / (R + 1) (Besag and Clifford 1991, with one exceedance). If the direction is itself
a draw, it beats the first r - 1 with a probability of at most 1 / r, whatever the scores' distribution is: among r directions that are exchangeable
at most one beats all others. That needs two things of a comparison, and no more: it treats both sides alike, and not both can win. So a
comparison may look at few prompts first and end there if the difference is clear (`Looks`), or take each side's best depth. No exact test at level
0.05 rejects with fewer than 19 draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from emo_mlflow.statistics.moments import Floats

LEVEL = 0.05
TIE = 1e-9  # of the sum of magnitudes: sums that differ by less are the same sum, and a tie stops the direction

Outcome = Literal["beaten", "reached", "open"]
Decision = Literal["rejected", "kept", "open", "waiting", "untested"]


@dataclass(frozen=True)
class Looks:
    """How many prompts a comparison rests on.

    Attributes:
        prompts: prompts at each look, ascending; the last decides in any case.
        clear: the size of the paired t statistic at which an earlier look decides; unused with one look.

    Raises:
        ValueError: if the looks do not ascend from at least 2 prompts, or `clear` is not positive.
    """

    prompts: tuple[int, ...]
    clear: float = 1.5

    def __post_init__(self) -> None:
        if not self.prompts or self.prompts[0] < 2 or any(b <= a for a, b in pairwise(self.prompts)):
            raise ValueError(f"looks {self.prompts} do not ascend from at least 2 prompts")
        if not self.clear > 0:
            raise ValueError(f"clear = {self.clear} is not positive")


@dataclass(frozen=True)
class Duel:
    """What came of comparing a direction with one draw.

    Attributes:
        outcome: `beaten`: the direction's mean is larger. `reached`: it is not. `open`: the draw needs more prompts.
        prompts: how many prompts this rests on, or, if open, how many both sides need for the next look.
    """

    outcome: Outcome
    prompts: int


@dataclass(frozen=True)
class DrawTest:
    """A direction's test so far.

    Attributes:
        draws: random directions that it met, up to and with the one that stopped it.
        reached: whether the last of them was not beaten.
        reason: why there is no test, or empty.
    """

    draws: int = 0
    reached: bool = False
    reason: str = ""

    @property
    def rank(self) -> int:
        """1 / p."""
        return self.draws if self.reached else self.draws + 1

    @property
    def p(self) -> float:
        """Final once a draw has stopped the test, or at its limit; before that, the most that it can still become. NaN without a test."""
        return math.nan if self.reason else 1 / self.rank


@dataclass(frozen=True)
class Step:
    """What a procedure says of one emotion.

    Attributes:
        decision: `rejected`: the direction beats random ones, corrected over the emotions. `kept`: not shown. `open`: meets further draws.
            `waiting`: on what becomes of others. `untested`: an earlier emotion of the sequence was kept.
        p: the test's own p.
        adjusted: the level at which the procedure would still reject; NaN if undecided or untested.
        draws: how many random directions it met.
        limit: the number of draws at which it would be rejected if none reaches it; 0 unless open.
    """

    decision: Decision
    p: float
    adjusted: float
    draws: int
    limit: int = 0


def draws_needed(level: float) -> int:
    """The fewest draws after which p can be at most `level`: 19 for 0.05."""
    return math.ceil(1 / level - 1e-9) - 1


def duel(own: Floats, draw: Floats, looks: Looks) -> Duel:
    """A direction against one random direction on the same prompts: whose mean score is larger?

    Args:
        own, draw: scores [n] or [depths, n], prompts in the order that the design fixed. Either may have fewer prompts than the last look.
            The baseline cancels and is not needed. With several depths each side counts with that of its largest mean. A prompt counts
            if neither side is NaN at any depth; without any, the draw counts as having reached the direction.

    Raises:
        ValueError: if the two do not have the same depths.
    """
    ours, theirs = np.atleast_2d(np.asarray(own, float)), np.atleast_2d(np.asarray(draw, float))
    if len(ours) != len(theirs):
        raise ValueError(f"the direction has {len(ours)} depths and the draw {len(theirs)}: both must search the same")
    for look in looks.prompts:
        if min(ours.shape[1], theirs.shape[1]) < look:
            return Duel("open", look)
        sign, size = _difference(ours[:, :look], theirs[:, :look])
        if look == looks.prompts[-1] or size >= looks.clear:
            break
    return Duel("beaten" if sign > 0 else "reached", look)


def _difference(ours: Floats, theirs: Floats) -> tuple[float, float]:
    """The sign of the difference of the two sides' largest means, and the size of its paired t statistic."""
    present = ~(np.isnan(ours).any(axis=0) | np.isnan(theirs).any(axis=0))
    n = int(present.sum())
    if not n:
        return 0.0, 0.0
    ours, theirs = ours[:, present], theirs[:, present]
    gaps = ours[ours.sum(axis=1).argmax()] - theirs[theirs.sum(axis=1).argmax()]
    total, sd = float(gaps.sum()), float(gaps.std(ddof=min(1, n - 1)))
    if abs(total) <= TIE * np.abs(gaps).sum():
        return 0.0, 0.0
    size = abs(total) / (sd * math.sqrt(n)) if sd else math.inf
    return math.copysign(1.0, total), size if n > 1 else 0.0


def draw_test(own: Floats, draws: Sequence[Floats], looks: Looks) -> DrawTest:
    """The test so far, from the draws in their order; those behind the first that reached the direction do not count.

    So a pack of draws may be generated together: p is what it would have been one by one. A draw that is still open ends the count too.

    Args:
        own: scores of the direction, as in `duel`.
        draws: scores of random directions, in the order that the design fixed.
    """
    if np.isnan(np.asarray(own, float)).all():
        return DrawTest(reason="no scores")
    met = 0
    for draw in draws:
        outcome = duel(own, draw, looks).outcome
        if outcome == "open":
            break
        met += 1
        if outcome == "reached":
            return DrawTest(met, reached=True)
    return DrawTest(met)


def wanted(own: Floats, draws: Sequence[Floats], looks: Looks, limit: int) -> dict[int, int]:
    """What to generate next for a test that is open: for each draw, by its number from 0, the prompts that it should then have.

    Draws that are begun go on to their next look; new ones come in packs of 1, 2, 4, 8, ..., up to `limit` in all. Against null
    directions such packs cost 0.7 draws more than one by one, of 3.5.
    """
    pack = min(2 ** (draw_test(own, draws, looks).draws + 1).bit_length() - 1, limit)
    needed: dict[int, int] = {}
    for number in range(pack):
        if number >= len(draws):
            needed[number] = looks.prompts[0]
            continue
        found = duel(own, draws[number], looks)
        if found.outcome == "reached":
            break
        if found.outcome == "open":
            needed[number] = found.prompts
    return needed


def fixed_sequence(tests: Mapping[str, DrawTest], level: float = LEVEL) -> dict[str, Step]:
    """Each emotion in its order at the whole level, until one is not rejected (Maurer, Hothorn and Lehmacher 1995).

    Args:
        tests: in the order that was fixed in advance; `DrawTest()` for one that has not begun.
    """
    limit, steps, worst = draws_needed(level), {}, 0.0
    state: Decision = "rejected"
    for name, test in tests.items():
        if state != "rejected":
            later: Decision = "waiting" if state == "open" else "untested"
            steps[name] = Step(later, test.p if test.draws else math.nan, math.nan, test.draws)
            continue
        worst = max(worst, test.p)
        if test.reason or (test.reached and test.rank <= limit):
            state = "kept"
        elif test.rank <= limit:
            state = "open"
        adjusted = math.nan if test.reason or state == "open" else worst
        steps[name] = Step(state, test.p, adjusted, test.draws, limit if state == "open" else 0)
    return steps


def holm(tests: Mapping[str, DrawTest], level: float = LEVEL) -> dict[str, Step]:
    """Every emotion is answered: the smallest of m p-values at level / m, the next at level / (m - 1), ... (Holm 1979).

    Holm's procedure asks of its p-values only that each is valid, and one that a draw has stopped is: so every test may stop at its own first
    draw. What is decided is what all draws up to R = m / level - 1 (59 for three) would decide. The j-th to be rejected needs (m - j + 1) / level - 1
    draws: 59, then 39, then 19.

    Args:
        tests: of all emotions; `DrawTest()` for one that has not begun. One that has no test counts in m.
    """
    left = sorted(tests, key=lambda name: 0 if tests[name].reason else tests[name].rank, reverse=True)
    steps, worst = {}, 0.0
    while left:
        test, size = tests[left[0]], len(left)
        if test.reason or test.rank <= draws_needed(level / size):
            break
        worst = max(worst, size * test.p)
        steps[left.pop(0)] = Step("rejected", test.p, min(worst, 1.0), test.draws)
    limit = draws_needed(level / len(left)) if left else 0
    growing = any(not (tests[name].reached or tests[name].reason) for name in left)
    for place, name in enumerate(left):
        test = tests[name]
        if test.reason:
            steps[name] = Step("kept", test.p, math.nan, test.draws)
        elif not test.reached:
            steps[name] = Step("open", test.p, math.nan, test.draws, limit)
        elif growing and test.rank > draws_needed(level):
            steps[name] = Step("waiting", test.p, math.nan, test.draws)
        else:
            worst = max(worst, (len(left) - place) * test.p)
            adjusted = math.nan if growing else min(worst, 1.0)
            steps[name] = Step("kept", test.p, adjusted, test.draws)
    return {name: steps[name] for name in tests}

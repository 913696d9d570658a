"""What a study of several emotions can be expected to find, and how many texts it writes: simulated from normal scores before any text exists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from emo_mlflow.statistics.draw_power import TYPICAL, Spread
from emo_mlflow.statistics.moments import Floats, Integers, Mask
from emo_mlflow.statistics.sequential import LEVEL, DrawTest, Looks, draws_needed, fixed_sequence, holm

Procedure = Literal["fixed", "holm"]
SIMULATIONS = 1000


@dataclass(frozen=True)
class StudyDesign:
    """What decides a study's cost.

    Attributes:
        looks: prompts of a comparison; the last look is what the direction itself and the baseline are written on.
        procedure: `fixed`: in order, until one is not rejected. `holm`: every emotion is answered.
        depths: depths that direction and draws search alike.
        shared: the same random directions, and so the same texts, serve all emotions. They may if all emotions have one layer, and
            strength is a budget that each direction meets by itself.
    """

    looks: Looks
    procedure: Procedure = "fixed"
    depths: int = 1
    shared: bool = True

    def most_draws(self, emotions: int) -> int:
        """Random directions that one emotion can need."""
        return draws_needed(LEVEL if self.procedure == "fixed" else LEVEL / emotions)


@dataclass(frozen=True)
class Expected:
    """Means over simulated studies.

    Attributes:
        found: probability that an emotion is rejected by the procedure, for each in order.
        all_found: probability that all are.
        any_found: probability that any is: under null directions the family-wise error.
        draws: random directions written for, each counted once if shared.
        texts: texts in all, with the baseline's; draws are counted one by one, without what a pack adds.
    """

    found: tuple[float, ...]
    all_found: float
    any_found: float
    draws: float
    texts: float


def expected(
    design: StudyDesign,
    effects: Sequence[float | None],
    world: Spread = TYPICAL,
    *,
    simulations: int = SIMULATIONS,
    seed: int = 0,
) -> Expected:
    """What a study finds and costs if its emotions have these true effects.

    Scores are normal, so it agrees with `draw_power` where both apply; rare events make real power differ by some 0.05.

    Args:
        effects: an emotion's d as in `draw_power`, in the order of the sequence; None for a direction that is a random one.
    """
    rng = np.random.default_rng(seed)
    beaten, used = _duels(design, effects, design.most_draws(len(effects)), world, simulations, rng)
    return outcome(design, beaten, used)


def outcome(design: StudyDesign, beaten: Mask, used: Integers) -> Expected:
    """What studies find and cost whose comparisons with draws would end like this.

    Args:
        beaten: whether the direction beats a draw, [studies, emotions, draws], for as many draws as one emotion can need.
        used: prompts that the comparison takes, of the same shape.
    """
    studies, emotions, limit = beaten.shape
    unbeaten: Mask = np.asarray(beaten.all(axis=2))
    first = np.where(unbeaten, limit, beaten.argmin(axis=2) + 1)
    found = np.zeros((studies, emotions), bool)
    met = np.zeros((studies, emotions), dtype=np.int64)
    for study in range(studies):
        found[study], met[study] = _run(design.procedure, first[study], unbeaten[study])
    counted = np.where(np.arange(limit) < met[:, :, None], used, 0)
    written = counted.max(axis=1) if design.shared else counted.reshape(studies, -1)
    n = design.looks.prompts[-1]
    texts = n + design.depths * (n * (met > 0).sum(axis=1) + written.sum(axis=1))
    return Expected(
        found=tuple(float(share) for share in found.mean(axis=0)),
        all_found=float(found.all(axis=1).mean()),
        any_found=float(found.any(axis=1).mean()),
        draws=float((written > 0).sum(axis=1).mean()),
        texts=float(texts.mean()),
    )


def _duels(
    design: StudyDesign,
    effects: Sequence[float | None],
    limit: int,
    world: Spread,
    simulations: int,
    rng: np.random.Generator,
) -> tuple[Mask, Integers]:
    """Whether each draw is beaten and the prompts which that takes, [simulations, emotions, draws]."""
    looks = np.array(design.looks.prompts)
    steps = np.diff(looks, prepend=0)
    own_shape = (simulations, len(effects), 1, design.depths)
    shape = (simulations, len(effects), limit, design.depths)
    own, scale = np.empty((*own_shape, len(looks))), np.empty((len(effects), 1))
    for place, d in enumerate(effects):
        noise = world.noise if d is None else 1.0
        true = rng.normal(0, world.spread, own_shape[:1] + own_shape[2:])
        if d is not None:
            true[..., 0] = d
        own[:, place] = _sums(true, noise, steps, rng)
        scale[place] = np.hypot(noise, world.noise)
    draws = _sums(rng.normal(0, world.spread, shape), world.noise, steps, rng)
    # A deviation of another depth is the emotion's own, and its size that of a random direction.
    gaps = own.max(axis=3) - draws.max(axis=3)
    decided = np.abs(gaps) >= design.looks.clear * scale[:, :, None] * np.sqrt(looks)
    decided[..., -1] = True
    look = decided.argmax(axis=3)
    return np.take_along_axis(gaps, look[..., None], axis=3)[..., 0] > 0, looks[look]


def _sums(true: Floats, noise: float, steps: npt.NDArray[np.int64], rng: np.random.Generator) -> Floats:
    """Sums of scores up to each look, [..., looks], of directions whose true effects are given."""
    added = true[..., None] * steps + rng.normal(size=(*true.shape, len(steps))) * noise * np.sqrt(steps)
    return added.cumsum(axis=-1)


def _run(procedure: Procedure, first: Integers, unbeaten: Mask) -> tuple[list[bool], list[int]]:
    """One study, emotion after emotion: which are rejected, and how many draws each met.

    Args:
        first: the draw that stops each direction, or the last one.
        unbeaten: whether no draw does.
    """
    decide = fixed_sequence if procedure == "fixed" else holm
    tests = {str(place): DrawTest() for place in range(len(first))}
    steps = decide(tests)
    while opened := next((name for name, step in steps.items() if step.decision == "open"), None):
        limit, stop = steps[opened].limit, int(first[int(opened)])
        reached = stop <= limit and not unbeaten[int(opened)]
        tests[opened] = DrawTest(stop if reached else limit, reached)
        steps = decide(tests)
    return [step.decision == "rejected" for step in steps.values()], [test.draws for test in tests.values()]

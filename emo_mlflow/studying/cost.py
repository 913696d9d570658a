"""What a study costs and what it can find, said before it starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from emo_mlflow.common.machine import best_gemm_rate
from emo_mlflow.errors import UserError
from emo_mlflow.models.blocks import BlockStack
from emo_mlflow.settings.study import Budget
from emo_mlflow.statistics.draw_power import smallest_effect
from emo_mlflow.statistics.sequential import Looks
from emo_mlflow.statistics.study_plan import Expected, StudyDesign, expected
from emo_mlflow.studying.protocol import Design
from emo_mlflow.sweeping.estimate import TYPICAL_UTILISATION

TARGET, FEWEST = Budget(10, "min"), 12  # where no budget was asked for: a slow machine takes longer, and says so
MODERATE, LARGE = 0.3, 0.5  # effects, in standard deviations of the difference from a random direction
STRENGTH_TEXTS = 15  # of 20 tokens: what meeting a budget of damage takes for one direction, measured on SmolLM2-135M
HALF = 0.5  # the power below which a study is not worth its texts


@dataclass(frozen=True)
class Cost:
    """A study's cost and power.

    Attributes:
        least, most: texts if no direction is specific, and if all are (with a large effect).
        least_work, most_work: the same, with the work of meeting a budget of damage counted in texts.
        seconds_per_text: of generation.
        power: per emotion, of a large effect (mean over the emotions).
    """

    n_prompts: int
    least: int
    most: int
    least_work: float
    most_work: float
    seconds_per_text: float
    power: float
    power_moderate: float

    def within(self, budget: Budget) -> bool:
        """Whether the study keeps to a budget even if all directions are specific."""
        used = self.most_work * self.seconds_per_text / 60 if budget.unit == "min" else self.most
        return used <= budget.amount

    def lines(self, design: Design) -> list[str]:
        """For the terminal and the report."""
        kinds = len(design.controls)
        minutes = [texts * self.seconds_per_text / 60 for texts in (self.least_work, self.most_work)]
        small = smallest_effect(self.n_prompts, design.limit, 0.8)
        return [
            f"{self.n_prompts} prompts; {len(design.places)} directions, each against at most {design.limit} random directions of {kinds} "
            f"kind{'s' if kinds > 1 else ''}",
            f"about {self.least:,} texts ({minutes[0]:.0f} min) if no direction is specific, {self.most:,} ({minutes[1]:.0f} min) if all are",
            f"power per emotion: {self.power:.2f} for an effect of {LARGE:g} standard deviations, {self.power_moderate:.2f} for {MODERATE:g} "
            f"(0.80 from {small:.2f} on, if it is tested alone)",
        ]


def cost_of(design: Design, seconds_per_text: float) -> Cost:
    """Cost and power of a design, by simulation of normal scores."""
    plan = StudyDesign(
        looks=design.looks,
        procedure="holm" if design.procedure == "holm" else "fixed",
        depths=len(design.places[0].layers),
        shared=design.shared,
    )
    m, n = len(design.places), len(design.prompts)
    null, large, moderate = (expected(plan, [effect] * m) for effect in (None, LARGE, MODERATE))
    return Cost(
        n_prompts=n,
        least=_texts(null, design, m, n),
        most=_texts(large, design, m, n),
        least_work=_texts(null, design, m, n) + _strengths(null, design, m),
        most_work=_texts(large, design, m, n) + _strengths(large, design, m),
        seconds_per_text=seconds_per_text,
        power=sum(large.found) / m,
        power_moderate=sum(moderate.found) / m,
    )


def _texts(found: Expected, design: Design, m: int, n: int) -> int:
    """Texts of all kinds of controls; draws of an emotion's own (shuffled) are not shared, so this counts them m times."""
    fixed = n * (1 + m) + len(design.second) * (1 + m)
    draws = found.texts - n * (1 + m)
    own = sum(m if control == "shuffled" and design.shared else 1 for control in design.controls)
    return round(fixed + max(draws, 0) * own)


def _strengths(found: Expected, design: Design, m: int) -> float:
    """What finding the strengths of all draws takes, in texts."""
    if design.places[0].alpha_unit != "kl":
        return 0.0
    own = sum(m if control == "shuffled" and design.shared else 1 for control in design.controls)
    return STRENGTH_TEXTS * found.draws * own * len(design.places[0].layers)


def seconds_per_text(stack: BlockStack, sequence_length: int) -> float:
    """Seconds that one text takes at a typical utilisation of this machine, without its likelihood."""
    body = sum(p.numel() for p in stack.blocks.parameters())
    head = stack.model.get_output_embeddings().weight.numel()
    rate = best_gemm_rate(stack.device, stack.dtype) * TYPICAL_UTILISATION
    return 2.0 * (body + head) * sequence_length / rate


def fit_to_budget(design: Design, budget: Budget | None, seconds: float) -> tuple[Design, Cost]:
    """The design on as many of its prompts as the budget allows; without one as `TARGET` allows, but not on fewer than `FEWEST`.

    Raises:
        UserError: if no number of prompts keeps to it, or the one that does has a power below one half for a large effect.
    """
    sizes = [n for n in (*range(len(design.prompts), 30, -15), 30, 24, 18, 12, 8, 6) if n <= len(design.prompts)]
    cost: Cost | None = None
    for n in dict.fromkeys(sizes):
        smaller = on_prompts(design, n)
        cost = cost_of(smaller, seconds)
        fits = cost.within(budget or TARGET)
        if (fits and cost.power >= HALF) or (budget is None and n <= FEWEST):
            return smaller, cost
        if fits:
            break
    assert cost is not None and budget is not None
    given = f"budget={budget.amount:g}{budget.unit}"
    found = f"a large effect ({LARGE:g} standard deviations) is found with a probability of {cost.power:.2f}"
    allows = f"allows {cost.n_prompts} prompts" if cost.within(budget) else f"is not enough for {cost.n_prompts} prompts"
    raise UserError(f"{given} {allows}, with which {found}: {_remedy(design, seconds, budget)}")


def _remedy(design: Design, seconds: float, budget: Budget) -> str:
    for n in (12, 18, 24, 30, 60, 90):
        cost = cost_of(on_prompts(design, min(n, len(design.prompts))), seconds)
        if cost.power >= HALF or n >= len(design.prompts):
            break
    needed = f"{math.ceil(cost.most_work * seconds / 60)}min" if budget.unit == "min" else f"{cost.most}texts"
    return f"give budget={needed} for {cost.n_prompts} prompts (power {cost.power:.2f}), or ask for fewer emotions or controls"


def on_prompts(design: Design, n: int) -> Design:
    """The design on its first n prompts."""
    looks = tuple(look for look in design.looks.prompts if look < n)
    return replace(design, prompts=design.prompts[:n], looks=Looks((*looks, n), design.looks.clear))


def plan_lines(design: Design, cost: Cost) -> Sequence[str]:
    """The design in a few lines."""
    places = [
        f"{place.emotion}: layer {', '.join(map(str, place.layers))}, alpha {place.alpha:g} {place.alpha_unit}" for place in design.places
    ]
    return ["; ".join(places), *cost.lines(design)]

"""The strength at which a direction does a given damage: one rule for every direction, fitted or drawn.

Several edits of one condition have one factor, and the budget is of what they do together. The strength depends on the direction, the layer, the
model and the neutral texts alone, and on nothing that was generated or scored: directions that are exchangeable before the rule are exchangeable
after it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from emo_mlflow.errors import UserError
from emo_mlflow.models.blocks import BlockStack
from emo_mlflow.models.loading import LoadedModel
from emo_mlflow.models.tokens import encode
from emo_mlflow.prompts.passages import neutral_passages
from emo_mlflow.steering.damage import DamageMeter
from emo_mlflow.steering.edits import Patch, each_edit
from emo_mlflow.types import Tokens

N_PASSAGES = 8  # neutral texts on which a budget is met
PASSAGE_TOKENS = 24  # of each, so that a direction costs about as much to measure as its first texts
TOLERANCE = 0.01  # of the budget
DIGITS = 4  # of a strength, so that it does not hang on a machine's last bits
FIRST_GUESS, ITS_BUDGET = 0.15, 0.2  # an edit of this length, in norms of the clean stream, does about this damage
WEAKEST, STRONGEST = 1e-6, 1e4  # lengths of an edit beyond which nothing changes any more
ROUGHLY = 0.2  # the tolerance on a part of the texts, from which all of them take two or three steps
MOST_STEPS = 40
SLOPE, SLOPES, LONGEST_STEP = 2.0, (0.5, 4.0), math.log(8)  # of log KL over log strength: 2 where the edit is small


@dataclass(frozen=True, eq=False)
class Strengths:
    """What `find_strengths` found.

    Attributes:
        alpha: float64 [patches], the factors, of `DIGITS` significant digits.
        kl: float64 [patches], the damage measured at them, within `TOLERANCE` of the budgets.
    """

    alpha: npt.NDArray[np.float64]
    kl: npt.NDArray[np.float64]


@dataclass
class _Search:
    """One direction's way to its budget, in logarithms; a step at a time, so that all directions are measured together.

    Attributes:
        alpha: the strength to measure next.
        norm: the strength at which the edit is as long as the clean stream.
        slope: of log KL over log strength.
        low, high: log strengths below and above the budget, the nearest so far.
        found, kl: the strength that was measured last, and its damage.
    """

    alpha: float
    norm: float
    budget: float
    slope: float = SLOPE
    low: float = -math.inf
    high: float = math.inf
    last: tuple[float, float] | None = None
    found: float = math.nan
    kl: float = math.nan

    def ended(self, tolerance: float) -> bool:
        """Whether the budget is met, or out of reach."""
        met = abs(self.kl - self.budget) <= tolerance * self.budget
        return met or not WEAKEST < self.alpha / self.norm < STRONGEST

    def learn(self, kl: float) -> None:
        """Takes in the damage at `alpha`, and moves `alpha`: along the line through the last two points, within low and high."""
        self.found, self.kl = self.alpha, kl
        x, y = math.log(self.alpha), math.log(max(kl, 1e-30) / self.budget) if math.isfinite(kl) else math.inf
        if y < 0:
            self.low = x
        else:
            self.high = x
        if self.last is not None and self.last[0] != x and math.isfinite(y + self.last[1]):
            self.slope = float(np.clip((y - self.last[1]) / (x - self.last[0]), *SLOPES))
        self.last = (x, y)
        moved = x - float(np.clip(y / self.slope, -LONGEST_STEP, LONGEST_STEP))
        if not self.low < moved < self.high:
            moved = (self.low + self.high) / 2
        self.alpha = _rounded(math.exp(moved))


def passage_tokens(loaded: LoadedModel, prepend_bos: bool) -> list[Tokens]:
    """The built-in neutral passages as token ids, cut to one length, so that nothing is padded."""
    return [tokens[:PASSAGE_TOKENS] for tokens in encode(loaded, neutral_passages(), prepend_bos)]


def budget_meter(loaded: LoadedModel, stack: BlockStack, boundaries: Collection[int], prepend_bos: bool) -> DamageMeter:
    """What budgets are met on, in a sweep, in a study and in a served model alike."""
    return DamageMeter(stack, passage_tokens(loaded, prepend_bos)[:N_PASSAGES], sorted(boundaries))


def find_strengths(meter: DamageMeter, patches: Sequence[Patch], budgets: Sequence[float]) -> Strengths:
    """The factor of each patch at which its mean KL per token is its budget.

    Args:
        patches: each adds something. The factor is of alpha at the first step, which every edit has its own of.
        budgets: in nats per token. A negative one is met by the opposite direction, and 0 by none.

    Raises:
        UserError: naming the boundary, if a patch does less or more damage than its budget whatever its strength.
    """
    found, kl = np.zeros(len(patches)), np.zeros(len(patches))
    wanted = [i for i, budget in enumerate(budgets) if budget]
    turned = [patches[i] if budgets[i] > 0 else each_edit(patches[i], _opposite) for i in wanted]
    searches = _search(meter, turned, [abs(budgets[i]) for i in wanted]) if wanted else []
    for i, search in zip(wanted, searches, strict=True):
        if abs(search.kl - search.budget) > TOLERANCE * search.budget:
            what = "edits from the one" if patches[i].then else "direction"
            raise UserError(
                f"no strength of the {what} after {patches[i].boundary} blocks does a damage of {search.budget:g} nats per token "
                f"(the last one tried does {search.kl:.3g}): choose another budget or layer"
            )
        found[i], kl[i] = math.copysign(search.found, budgets[i]), search.kl
    return Strengths(found, kl)


def _search(meter: DamageMeter, patches: Sequence[Patch], budgets: Sequence[float]) -> list[_Search]:
    """From a guess to where a part of the texts meets the budgets, and from there to where all do."""
    norms = [_long_as_the_stream(meter, patch) for patch in patches]
    guesses = [norm * FIRST_GUESS * math.sqrt(budget / ITS_BUDGET) for norm, budget in zip(norms, budgets, strict=True)]
    searches = [_Search(_rounded(guess), norm, budget) for guess, norm, budget in zip(guesses, norms, budgets, strict=True)]
    if meter.n_batches > 1:
        _converge(meter, patches, searches, ROUGHLY, batches=1)
        searches = [_Search(search.found, search.norm, search.budget, search.slope) for search in searches]
    _converge(meter, patches, searches, TOLERANCE, batches=None)
    return searches


def _long_as_the_stream(meter: DamageMeter, patch: Patch) -> float:
    """The factor at which the lengths of all edits, each in norms of the clean stream where it is, sum to 1."""
    edits = (patch, *patch.then)
    alone = [meter.norms[edit.boundary] / (float(np.linalg.norm(edit.shift)) * abs(float(edit.alpha_by_step[0]))) for edit in edits]
    return statistics.harmonic_mean(alone) / len(alone)


def _opposite(edit: Patch) -> Patch:
    return replace(edit, shift=-edit.shift)


def _times(factor: float) -> Callable[[Patch], Patch]:
    return lambda edit: replace(edit, alpha_by_step=(edit.alpha_by_step[:1].astype(np.float64) * factor).astype(np.float32))


def _rounded(alpha: float) -> float:
    return float(f"{alpha:.{DIGITS}g}")


def _converge(
    meter: DamageMeter, patches: Sequence[Patch], searches: Sequence[_Search], tolerance: float, batches: int | None
) -> None:
    """Moves every search to its budget, or to where it cannot go on."""
    waiting = list(range(len(patches)))
    for _ in range(MOST_STEPS):
        trials = [each_edit(patches[i], _times(searches[i].alpha)) for i in waiting]
        for i, kl in zip(waiting, meter.measure(trials, batches).mean_kl, strict=True):
            searches[i].learn(float(kl))
        waiting = [i for i in waiting if not searches[i].ended(tolerance)]
        if not waiting:
            return

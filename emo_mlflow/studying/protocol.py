"""What a study fixes before the first steered text: the order of emotions, one place and strength for each, the controls and the tests.

A place that was chosen by the scores of steered text is an advantage that a random direction does not have. So nothing here looks at one: the layer
comes from how well the direction reads held-out texts, and the strength from the damage that it does to neutral text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal

import numpy as np

from emo_mlflow.errors import UserError
from emo_mlflow.statistics.sequential import Looks, draws_needed
from emo_mlflow.types import AlphaUnit, Control, FloatArray, Scope, Site, digest

Procedure = Literal["sequence", "holm"]

LEVEL = 0.05
MOST_DEPTHS = 4
DEEPEST, SHALLOWEST = 0.75, 0.25  # relative depths between which a layer is chosen


@dataclass(frozen=True)
class Arm:
    """What continues the prompts: nothing (the baseline), an emotion's direction, or a random direction.

    A random direction has no emotion where it can serve all: one place for all emotions, and a strength that it meets by itself. Its texts are then
    the same for every emotion. Shuffled labels are an emotion's own.
    """

    emotion: str | None = None
    control: Control | None = None
    draw: int | None = None


BASELINE = Arm()


@dataclass(frozen=True)
class Reading:
    """How well an emotion's direction reads held-out texts, by layer.

    Attributes:
        accuracy: float [n_layers], balanced.
        low: float [n_layers], the lower end of its 95% interval.
    """

    accuracy: FloatArray
    low: FloatArray


@dataclass(frozen=True)
class Place:
    """Where and how strongly one emotion's direction, and each of its controls, is injected.

    Attributes:
        metric: the emotion's own label.
        layers: one, or with `search=depths` up to four, of which the largest mean counts, for draws as for the direction.
        alpha: in units of `alpha_unit`.
        chosen: why these layers, in one clause.
    """

    emotion: str
    metric: str
    layers: tuple[int, ...]
    alpha: float
    alpha_unit: AlphaUnit
    accuracy: float
    chosen: str


@dataclass(frozen=True)
class Design:
    """A study, fixed.

    Attributes:
        places: in the order in which the emotions are tested.
        direction: how directions are fitted.
        controls: the rungs; a direction is called specific only if it beats every one that is not void.
        limit: random directions per rung and emotion at most.
        looks: how many prompts a comparison with one random direction rests on.
        prompts: ids of the prompts, in the order in which comparisons use them.
        second: ids of the second set of prompts.
    """

    places: tuple[Place, ...]
    direction: str
    controls: tuple[Control, ...]
    procedure: Procedure
    limit: int
    looks: Looks
    prompts: tuple[str, ...]
    second: tuple[str, ...]
    scope: Scope
    patch_window: int | None
    site: Site
    sequence_length: int
    temperature: float
    seed: int
    template: str = "none"
    system: str = ""
    fit_on: str = "text"

    @property
    def emotions(self) -> tuple[str, ...]:
        """In the order in which they are tested."""
        return tuple(place.emotion for place in self.places)

    @property
    def shared(self) -> bool:
        """Whether a random direction serves all emotions: they have one place, and every direction meets a budget of damage by itself."""
        places = {(place.layers, place.alpha, place.alpha_unit) for place in self.places}
        return len(places) == 1 and self.places[0].alpha_unit == "kl"

    def arm(self, emotion: str, control: Control, draw: int) -> Arm:
        """A random direction that an emotion is tested against."""
        return Arm(None if self.shared and control != "shuffled" else emotion, control, draw)

    @property
    def design_id(self) -> str:
        """Identifies the design: a study whose design was changed afterwards has another. What is younger than a study is not in its hash."""
        later = {item.name: item.default for item in fields(self) if item.default is not MISSING}
        return digest({name: value for name, value in self.as_json().items() if name not in later or value != later[name]})

    def as_json(self) -> dict[str, Any]:
        """What design.json holds."""
        return asdict(self)


def choose_layers(reading: Reading, depths: int) -> tuple[tuple[int, ...], str]:
    """The layers to inject at, from held-out accuracy alone.

    The candidates lie in the middle half of the model. Those whose accuracy is not below the best one's interval are tied with it; of these the one
    nearest to the model's middle is taken, the earlier of two. With several depths, the tied layers' quantiles are.

    Args:
        depths: how many.
    """
    n = len(reading.accuracy)
    first, last = round(SHALLOWEST * (n - 1)), round(DEEPEST * (n - 1))
    inside = np.arange(first, last + 1)
    best = inside[int(reading.accuracy[inside].argmax())]
    tied = inside[reading.accuracy[inside] >= reading.low[best]]
    if depths > 1:
        spread = np.unique(tied[np.linspace(0, len(tied) - 1, min(depths, len(tied))).round().astype(int)])
        return tuple(int(layer) for layer in spread), f"{len(spread)} of {len(tied)} layers that read as well as layer {best}"
    middle = tied[int(np.abs(tied - (n - 1) / 2).argmin())]
    return (int(middle),), f"the middle one of {len(tied)} layers that read as well as layer {best}"


def order_of(accuracies: Mapping[str, float]) -> tuple[str, ...]:
    """The emotions, the best read first; those that are read equally well in the data set's order."""
    return tuple(sorted(accuracies, key=lambda name: -accuracies[name]))


def draws_limit(procedure: Procedure, n_emotions: int, level: float = LEVEL) -> int:
    """Random directions per emotion that the procedure can ask for: 19 in sequence, 59 with Holm for three emotions."""
    return draws_needed(level / n_emotions if procedure == "holm" else level)


def check_labels(emotions: Sequence[str], labels: Mapping[str, str | None], metrics: Sequence[str]) -> dict[str, str]:
    """Every emotion's own label.

    Raises:
        UserError: for an emotion without one: another label is never called its own.
    """
    if missing := [emotion for emotion in emotions if labels[emotion] is None]:
        known = ", ".join(sorted(metric for metric in metrics if metric.startswith("goemotions.")) or metrics)
        raise UserError(
            f"no scorer has a label for {', '.join(missing)}: leave it out with emotions=..., or give scorers= one that does; labels are {known}"
        )
    return {emotion: str(labels[emotion]) for emotion in emotions}

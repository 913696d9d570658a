"""What readers are asked about a text, and which metrics say the same: the one place for both."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np

from emo_mlflow.common.names import same_name
from emo_mlflow.scoring.targets import target_metric
from emo_mlflow.statistics.moments import Floats

SENTIMENT, POLITENESS, FLUENCY = "sentiment", "politeness", "fluency"
BROKEN = "fluency.broken"
_DIFFERENCES = {SENTIMENT: "sentiment.positive - sentiment.negative", POLITENESS: "politeness.polite - politeness.impolite"}


@dataclass(frozen=True)
class Question:
    """What a reader answers of every text with a whole number.

    Attributes:
        answers: what each number means, the lowest first; numbers follow each other.
    """

    name: str
    lowest: int
    answers: tuple[str, ...]

    @property
    def highest(self) -> int:
        """The largest answer."""
        return self.lowest + len(self.answers) - 1

    @property
    def is_share(self) -> bool:
        """Whether answers become yes or no (a hint of the emotion; broken text), and the metric is the probability of yes."""
        return self.name not in _DIFFERENCES

    def on_scale(self, mean: Floats) -> Floats:
        """Readers' mean answers on the scale of the metrics: 1 or 0 for a share, else as they are."""
        if not self.is_share:
            return np.asarray(mean, float)
        return np.asarray((mean < 1) if self.name == FLUENCY else (mean > 0), float)

    def metrics(self, available: Collection[str]) -> tuple[str, ...]:
        """The metrics, or differences `a - b` of two, that should say the same; a scorer's label of the question's name is one too."""
        own = target_metric(self.name, available) if self.is_share and self.name != FLUENCY else BROKEN if self.is_share else None
        difference = _DIFFERENCES.get(self.name, "")
        named = [metric for metric in available if same_name(metric.rpartition(".")[2]) == same_name(self.name)]
        found = [own, difference if difference and set(difference.split(" - ")) <= set(available) else None, *named]
        return tuple(dict.fromkeys(metric for metric in found if metric and set(metric.split(" - ")) <= set(available)))


def questions(emotions: Iterable[str]) -> tuple[Question, ...]:
    """One about each emotion, then sentiment, politeness and fluency."""
    asked = [Question(name, 0, ("none", "hint", "clear")) for name in emotions]
    asked += [
        Question(SENTIMENT, -1, ("unpleasant", "neither", "pleasant")),
        Question(POLITENESS, -1, ("rude", "neither", "polite")),
        Question(FLUENCY, 0, ("broken", "flawed", "fluent")),
    ]
    first: dict[str, Question] = {}
    for question in asked:
        first.setdefault(same_name(question.name), question)
    return tuple(first.values())

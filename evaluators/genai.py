"""Scorers for `mlflow.genai.evaluate(data, scorers=[Sentiment(), Politeness(), GoEmotions()])`."""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import Any, ClassVar

from mlflow.entities import AssessmentSource, AssessmentSourceType, Feedback
from mlflow.genai.scorers import Scorer

from emo_mlflow.errors import UserError
from emo_mlflow.scoring.loading import load_scorers
from emo_mlflow.scoring.protocol import Scorers
from emo_mlflow.types import FloatArray

_KEPT = 10_000


class _Batcher:
    """Lets threads that each want one text scored share batches.

    MLflow asks for one text at a time, from several threads and for each scorer apart. Texts that come while a batch
    runs wait, and are the next batch; a text that another scorer class asked for already is not scored again.
    """

    def __init__(self, scorers: Scorers) -> None:
        self.scorers = scorers
        self.batches = 0
        self._running = threading.Lock()
        self._waiting: dict[str, None] = {}
        self._known: dict[str, FloatArray] = {}

    def score(self, text: str) -> FloatArray:
        """Scores of one text, float32 [metrics]."""
        known = self._known.get(text)
        if known is not None:
            return known
        self._waiting[text] = None
        with self._running:
            if text not in self._known:
                self._run([*self._waiting])
            return self._known[text]

    def _run(self, texts: list[str]) -> None:
        rows = self.scorers.score(texts)
        if len(self._known) + len(texts) > _KEPT:
            self._known = {}
        self._known.update(zip(texts, rows, strict=True))
        self.batches += 1
        for text in texts:
            self._waiting.pop(text, None)


@lru_cache(maxsize=4)
def _batcher(scorers: str) -> _Batcher:
    return _Batcher(load_scorers([scorers]))


class _HeadScorer(Scorer):
    """Feedback `head.label` with a number for each label of one head.

    Attributes:
        scorers: which scorer computes it, as for `emo_mlflow.scoring.loading.load_scorers`.
        labels: those to report; empty for all. MLflow stores each label of each row by a call of its own, which with all
            35 takes seconds per row on SQLite: name the labels that matter when there are more than a few dozen rows.

    Raises:
        UserError: the scorer is missing, or lacks the head or one of the labels.
    """

    head: ClassVar[str]
    scorers: str = "embedded"
    labels: tuple[str, ...] = ()

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._columns()  # what is wrong is found before the evaluation, not once in each of its rows

    def __call__(self, *, outputs: Any) -> list[Feedback]:  # type: ignore[override]  # MLflow passes what is named here
        """The output, a text or what holds one under `content`, `response` or `text` -> a Feedback per label."""
        row = _batcher(self.scorers).score(_text(outputs))
        source = AssessmentSource(source_type=AssessmentSourceType.CODE, source_id=f"emo_mlflow/{self.scorers}")
        return [Feedback(name=metric, value=float(row[i]), source=source) for metric, i in self._columns().items()]

    def _columns(self) -> dict[str, int]:
        """Metrics to report, with their columns."""
        metrics = _batcher(self.scorers).scorers.metrics
        found = {metric: i for i, metric in enumerate(metrics) if metric.split(".")[0] == self.head}
        if not found:
            raise UserError(f"the scorer {self.scorers} has no {self.head}; it has {', '.join(metrics)}")
        wanted = [f"{self.head}.{label}" for label in self.labels] or list(found)
        unknown = sorted(set(wanted) - set(found))
        if unknown:
            raise UserError(f"the scorer {self.scorers} has no {', '.join(unknown)}; it has {', '.join(found)}")
        return {metric: found[metric] for metric in wanted}


class Sentiment(_HeadScorer):
    """Probabilities of negative, neutral and positive."""

    head: ClassVar[str] = "sentiment"
    name: str = "sentiment"


class Politeness(_HeadScorer):
    """A politeness score (in standard deviations), and probabilities of impolite, neutral and polite."""

    head: ClassVar[str] = "politeness"
    name: str = "politeness"


class GoEmotions(_HeadScorer):
    """Probabilities of the 28 GoEmotions labels, of which several may hold."""

    head: ClassVar[str] = "goemotions"
    name: str = "goemotions"


def _text(outputs: Any) -> str:
    if isinstance(outputs, str):
        return outputs
    if isinstance(outputs, dict):
        for key in ("content", "response", "text", "output"):
            if isinstance(outputs.get(key), str):
                return outputs[key]
    raise UserError(f"expected a text or a dict with content, response, text or output, found {outputs!r:.100}")

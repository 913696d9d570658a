"""Scorers for `mlflow.genai.evaluate(data, scorers=[Sentiment(), Politeness(), GoEmotions()])`."""

from __future__ import annotations

import threading
from collections.abc import Sequence
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
        """The output -> a Feedback per label.

        Args:
            outputs: a text; an answer of a chat or a completion as OpenAI, Anthropic, LangChain or MLflow's agents give it; or messages, of
                which the last is scored.

        Raises:
            UserError: if no text is found in it.
        """
        row = _batcher(self.scorers).score(text_in(outputs))
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


# Where the usual shapes have their text, in the order in which it is looked for.
_KEYS = (
    "content", "response", "text", "output_text", "generated_text", "completion", "answer", "result", "parts", "kwargs",
    "message", "messages", "choices", "candidates", "generations", "output", "outputs", "predictions", "data",
)  # fmt: skip
_OTHERS = ("user", "system", "tool", "developer", "human", "function")  # who does not answer
_UNSAID = ("reasoning", "thinking", "tool_use", "tool_call", "function_call", "tool_result", "function_call_output")


def text_in(outputs: Any) -> str:
    """The text of an answer, in whatever of the usual shapes.

    Raises:
        UserError: if there is none.
    """
    found = _found(outputs)
    if found is None:
        raise UserError(
            f"expected a text, a message, or an answer with one under content, text, response, messages, choices or output, found {outputs!r:.100}"
        )
    return found


def _found(value: Any, depth: int = 0) -> str | None:
    if isinstance(value, str) or depth > 8:
        return value if isinstance(value, str) else None
    if not isinstance(value, dict | list | tuple):
        value = _as_dict(value)
    if isinstance(value, dict):
        if value.get("type") in _UNSAID:
            return None
        return next((text for key in _KEYS if (text := _found(value.get(key), depth + 1)) is not None), None)
    if isinstance(value, list | tuple):
        return _in_list(value, depth)
    return None


def _in_list(items: Sequence[Any], depth: int) -> str | None:
    """The parts of one text, joined; or the last message of who answers."""
    if items and all(isinstance(item, dict) and "role" not in item and isinstance(item.get("text"), str) for item in items):
        return "".join(item["text"] for item in items if item.get("type") not in _UNSAID)
    for item in reversed(items):
        said = item if isinstance(item, dict) else _as_dict(item)
        if isinstance(said, dict) and (said.get("role") or said.get("type")) in _OTHERS:
            continue
        if (text := _found(item, depth + 1)) is not None:
            return text
    return None


def _as_dict(value: Any) -> dict[str, Any] | None:
    """An object of a client's library as what it would be in JSON."""
    for name in ("model_dump", "to_dict", "dict"):
        if callable(method := getattr(value, name, None)):
            return method() if isinstance(method(), dict) else None
    return vars(value) if hasattr(value, "content") or hasattr(value, "text") else None

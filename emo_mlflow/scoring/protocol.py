"""What a scorer is to the rest of the package, and several of them as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np
import pandas as pd

from emo_mlflow.errors import UserError
from emo_mlflow.scoring.agreement import ALL, Agreement
from emo_mlflow.scoring.score_cache import ScoreCache
from emo_mlflow.types import FloatArray


class Scorer(Protocol):
    """Texts to numbers, by whatever means: a classifier's graph in ONNX Runtime (onnx.OnnxScorer) is one."""

    @property
    def name(self) -> str:
        """How settings and reports call it."""
        ...

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the columns that it gives, such as `goemotions.gratitude`."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identifies everything that decides a score: equal fingerprints give equal scores. Sweeps are compared where it is equal."""
        ...

    @property
    def agreement(self) -> tuple[Agreement, ...]:
        """How well it agrees with readers on text that was written under intervention; empty if that was not measured."""
        ...

    @property
    def providers(self) -> tuple[str, ...]:
        """What computes the scores on this machine; they may differ in the last bits between providers."""
        ...

    @property
    def costs(self) -> Mapping[str, float]:
        """What scoring has cost beside this machine's time, as metrics of the run; empty for nothing."""
        ...

    def score(self, texts: Sequence[str]) -> FloatArray:
        """Distinct texts -> float32 [texts, metrics], a row per text in their order; a text's row does not depend on the others."""
        ...


class Scorers:
    """Several scorers that are run on the same texts.

    Attributes:
        members: the scorers.
        metrics: names of the columns, those of one scorer after those of another.
        fingerprints: of each scorer, by name.
        agreement: of each scorer, by name, how well it agrees with readers over all texts, as plain data.
        providers: all that compute scores.
    """

    def __init__(self, members: Sequence[Scorer], cache: ScoreCache | None = None) -> None:
        """Raises UserError if two scorers have a metric of the same name."""
        _check_metrics(members)
        self._cache = cache
        self.members = tuple(members)
        self.metrics: tuple[str, ...] = tuple(metric for member in members for metric in member.metrics)
        self.fingerprints: dict[str, str] = {member.name: member.fingerprint for member in members}
        self.agreement: dict[str, list[dict[str, Any]]] = {member.name: _over_all(member) for member in members}
        self.providers: list[str] = list(dict.fromkeys(name for member in members for name in member.providers))

    @property
    def costs(self) -> dict[str, float]:
        """Of all scorers."""
        return {name: value for member in self.members for name, value in member.costs.items()}

    def score(self, texts: Sequence[str] | pd.Series) -> FloatArray:
        """Texts -> float32 [len(texts), len(metrics)], rows in the order of the texts.

        Each distinct text is scored once. An empty text is scored like any other.

        Raises:
            UserError: a text is not a string; the message names the row.
        """
        if isinstance(texts, str | pd.DataFrame):
            raise UserError(f"expected a list of texts or a column, found a {type(texts).__name__}")
        values = list(texts)
        _check_texts(values)
        distinct = list(dict.fromkeys(values))
        row_of = {text: row for row, text in enumerate(distinct)}
        columns = [self._score_distinct(member, distinct) for member in self.members]
        return np.concatenate(columns, axis=1)[[row_of[text] for text in values]]

    def _score_distinct(self, scorer: Scorer, texts: list[str]) -> FloatArray:
        if self._cache is None:
            return scorer.score(texts)
        key, width = scorer.fingerprint, len(scorer.metrics)
        known = self._cache.read(key, texts, width)
        unknown = [text for text in texts if text not in known]
        fresh = dict(zip(unknown, scorer.score(unknown), strict=True))
        self._cache.write(key, fresh)
        return np.array([known[t] if t in known else fresh[t] for t in texts], dtype=np.float32).reshape(-1, width)


def _over_all(scorer: Scorer) -> list[dict[str, Any]]:
    rows = [asdict(row) for row in scorer.agreement if row.texts == ALL]
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def _check_metrics(members: Sequence[Scorer]) -> None:
    owners: dict[str, str] = {}
    for member in members:
        for metric in member.metrics:
            if owners.setdefault(metric, member.name) != member.name:
                raise UserError(f"the scorers {owners[metric]} and {member.name} both have {metric}: drop one")


def _check_texts(texts: list[str]) -> None:
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"row {row}: expected a text, found {text!r} ({type(text).__name__}); drop such rows")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"row {row}: the text is not valid Unicode ({error.reason} at {error.start})") from None

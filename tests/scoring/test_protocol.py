"""Any scorer that keeps to the protocol is scored with, cached and refused like the ONNX ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from tiny_scorers import write_scorer

from emo_mlflow.errors import UserError
from emo_mlflow.scoring import loading
from emo_mlflow.scoring.agreement import Agreement
from emo_mlflow.scoring.protocol import Scorer, Scorers
from emo_mlflow.scoring.score_cache import ScoreCache


@dataclass
class Shouting:
    """Counts exclamation marks: a scorer without files."""

    name: str = "shouting"
    metrics: tuple[str, ...] = ("shouting.marks", "shouting.capitals")
    fingerprint: str = "1" * 16
    agreement: tuple[Agreement, ...] = ()
    costs: dict[str, float] = field(default_factory=dict)
    providers: tuple[str, ...] = ("Python",)
    seen: list[str] = field(default_factory=list)

    def score(self, texts: Sequence[str]) -> np.ndarray:
        self.seen += texts
        return np.array([[text.count("!"), sum(map(str.isupper, text))] for text in texts], np.float32).reshape(-1, 2)


def test_scorers_of_different_kinds_are_one_table(tmp_path: Path):
    """Guards: columns of one scorer under another's names, a text scored twice, a cache that one kind does not use."""
    tiny, shouting = loading.load_scorer(str(write_scorer(tmp_path / "tiny"))), Shouting()
    members: list[Scorer] = [shouting, tiny]
    together = Scorers(members, ScoreCache(tmp_path / "scores.db"))
    assert together.metrics == (*shouting.metrics, *tiny.metrics)
    assert together.fingerprints == {"shouting": "1" * 16, tiny.name: tiny.fingerprint}
    assert together.providers == ["Python", *tiny.providers]
    texts = ["Oh!", "one two", "Oh!", "NO!!"]
    for _ in range(2):
        scores = together.score(texts)
        assert scores.dtype == np.float32 and scores[:, :2].tolist() == [[1, 1], [0, 0], [1, 1], [2, 2]]
        np.testing.assert_array_equal(scores[:, 2:], Scorers([tiny]).score(texts))
    assert shouting.seen == ["Oh!", "one two", "NO!!"]


def test_two_scorers_with_one_metric_are_refused():
    """Guards: a column that one of two scorers overwrites."""
    with pytest.raises(UserError, match="loud and shouting both have shouting.marks"):
        Scorers([Shouting("loud"), Shouting()])


def test_a_scorer_that_does_not_keep_its_word_is_refused(monkeypatch):
    """Guards: a width that does not fit the metrics, found out when everything has been generated."""
    monkeypatch.setattr(loading, "find_scorer", Path)
    monkeypatch.setattr(loading, "load_onnx", lambda folder: Shouting(metrics=("shouting.marks",)))
    with pytest.raises(UserError, match=r"shouting does not give a finite score for each of shouting\.marks"):
        loading.load_scorer("shouting")

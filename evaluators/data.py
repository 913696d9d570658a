"""The corpora that the embedded scorer is trained on: files -> texts, targets and hashes."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from emo_mlflow.errors import UserError
from emo_mlflow.types import FloatArray

SENTIMENTS = ("negative", "neutral", "positive")
POLITENESS = ("impolite", "neutral", "polite")
FILES = (
    "goemotions_labels.txt",
    "goemotions_train.tsv",
    "goemotions_dev.tsv",
    "stanford_politeness_wikipedia_train.csv",
)

# GoEmotions' own grouping (Demszky et al. 2020); confusion, curiosity, realization and surprise are ambiguous.
_POSITIVE = "admiration amusement approval caring desire excitement gratitude joy love optimism pride relief"
_NEGATIVE = "anger annoyance disappointment disapproval disgust embarrassment fear grief nervousness remorse sadness"
_GROUP = {"neutral": 1} | dict.fromkeys(_POSITIVE.split(" "), 2) | dict.fromkeys(_NEGATIVE.split(" "), 0)


@dataclass(frozen=True, eq=False)
class EmotionTexts:
    """GoEmotions: texts, emotions float32 [n, 28] of 0 and 1, sentiments float32 [n, 3].

    A row of `sentiments` is spread evenly over the sentiments of the text's labels; it is zero where all are ambiguous.
    """

    texts: list[str]
    emotions: FloatArray
    sentiments: FloatArray

    def take(self, rows: npt.NDArray[np.integer]) -> EmotionTexts:
        """The same for some of the rows."""
        return EmotionTexts([self.texts[i] for i in rows], self.emotions[rows], self.sentiments[rows])


@dataclass(frozen=True, eq=False)
class PolitenessTexts:
    """Texts, scores float32 [n] (z-scored annotator means), and classes float32 [n, 3] by the corpus's quartiles."""

    texts: list[str]
    scores: FloatArray
    classes: FloatArray

    def take(self, rows: npt.NDArray[np.integer]) -> PolitenessTexts:
        """The same for some of the rows."""
        return PolitenessTexts([self.texts[i] for i in rows], self.scores[rows], self.classes[rows])


@dataclass(frozen=True, eq=False)
class Corpora:
    """All training data, with the sha256 of each file that it came from."""

    labels: tuple[str, ...]
    train: EmotionTexts
    dev: EmotionTexts
    politeness: PolitenessTexts
    hashes: dict[str, str]


def load_corpora(folder: Path) -> Corpora:
    """Reads the four files of `FILES`.

    Raises:
        UserError: a file is missing, or a line is not what its format says.
    """
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise UserError(f"no {', '.join(missing)} in {folder}: --data needs the folder with {', '.join(FILES)}")
    labels = tuple((folder / FILES[0]).read_text(encoding="utf-8").split())
    return Corpora(
        labels=labels,
        train=_read_emotions(folder / FILES[1], labels),
        dev=_read_emotions(folder / FILES[2], labels),
        politeness=_read_politeness(folder / FILES[3]),
        hashes={name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES},
    )


def sentiment_targets(emotions: FloatArray, labels: Sequence[str]) -> FloatArray:
    """float32 [n, 28] of 0 and 1 -> float32 [n, 3]: the sentiments of the labels that have one, summing to 1 or 0."""
    groups = np.zeros((len(labels), len(SENTIMENTS)), dtype=np.float32)
    for row, label in enumerate(labels):
        if label in _GROUP:
            groups[row, _GROUP[label]] = 1
    present = (emotions @ groups > 0).astype(np.float32)
    return (present / np.maximum(present.sum(axis=1, keepdims=True), 1)).astype(np.float32)


def _read_emotions(path: Path, labels: Sequence[str]) -> EmotionTexts:
    texts: list[str] = []
    rows: list[list[int]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").rstrip("\n").split("\n"), start=1):
        fields = line.split("\t")
        try:
            ids = [int(i) for i in fields[1].split(",")]
        except (IndexError, ValueError):
            raise UserError(f"{path}, line {number}: expected text, label ids and comment id between tabs") from None
        if not all(0 <= i < len(labels) for i in ids):
            raise UserError(f"{path}, line {number}: label ids {fields[1]} are not among the {len(labels)} labels")
        texts.append(fields[0])
        rows.append(ids)
    emotions = np.zeros((len(texts), len(labels)), dtype=np.float32)
    for i, ids in enumerate(rows):
        emotions[i, ids] = 1
    return EmotionTexts(texts, emotions, sentiment_targets(emotions, labels))


def _read_politeness(path: Path) -> PolitenessTexts:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        texts = [row["sentence"] for row in rows]
        scores = np.array([float(row["score"]) for row in rows], dtype=np.float32)
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: expected the columns sentence and score (a number): {error}") from None
    low, high = np.quantile(scores, (0.25, 0.75))
    return PolitenessTexts(texts, scores, np.eye(3, dtype=np.float32)[(scores > low).astype(int) + (scores >= high)])

"""Which columns of a data set's file hold the texts and the emotions: those that are named, or those of a data set as published."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emo_mlflow.common.names import shown
from emo_mlflow.errors import UserError
from emo_mlflow.prompts.conversations import COLUMN

Record = Mapping[str, object]
Placed = tuple[str, Record]  # where a person finds the row, and the row
NAMES = ("emotions.txt", "labels.txt", "classes.txt")  # beside a file with numbers for emotions: a name a line
# The 28 of GoEmotions, in the order of its numbers.
GOEMOTIONS = (
    "admiration", "amusement", "anger", "annoyance", "approval", "caring", "confusion", "curiosity", "desire", "disappointment",
    "disapproval", "disgust", "embarrassment", "excitement", "fear", "gratitude", "grief", "joy", "love", "nervousness", "optimism",
    "pride", "realization", "relief", "remorse", "sadness", "surprise", "neutral",
)  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """How a file is read where it is not as this package writes them; empty for what the file itself says.

    Attributes:
        text_column, emotion_column: names of columns.
        encoding: of a text file, as Python calls it.
    """

    text_column: str = ""
    emotion_column: str = ""
    encoding: str = ""


    @classmethod
    def of(cls, settings: Any) -> Layout:
        """What a command's settings say."""
        return cls(settings.text_column, settings.emotion_column, settings.encoding)


PLAIN = Layout()


def with_columns(rows: Sequence[Placed], layout: Layout, path: Path, names: Sequence[str] | None) -> list[Placed]:
    """The rows with columns `text`, or `messages`, and `emotion`; rows of GoEmotions with several emotions are left out.

    Args:
        names: of the emotions, by number, where the file itself says them.

    Raises:
        UserError: if there is no such column: the message says which there are, and the option that names one.
    """
    there = list(dict.fromkeys(name for _, row in rows for name in row))
    text, emotion = _choose(rows, there, layout, path)
    if emotion is None:
        return [(place, {**row, "text": row[text], "emotion": found}) for place, row in rows if (found := _the_one(row)) is not None]
    named = _named(rows, emotion, path, names)
    kept = [(place, row) for place, row in rows if _single(row.get(emotion))]
    into = COLUMN if text == COLUMN and not layout.text_column else "text"  # a column that is named may hold texts too
    return [(place, {**row, into: _said(row.get(text), text), "emotion": named(row.get(emotion))}) for place, row in kept]


def _choose(rows: Sequence[Placed], there: Sequence[str], layout: Layout, path: Path) -> tuple[str, str | None]:
    text = layout.text_column or ("text" if "text" in there else "prompt" if _empathetic(there) else COLUMN if COLUMN in there else "")
    emotion = layout.emotion_column or ("emotion" if "emotion" in there else "context" if _empathetic(there) else "")
    if not emotion and text in there and set(GOEMOTIONS) <= set(there):
        return text, None
    if not emotion and _class_label(rows):
        emotion = "label"
    listed = ", ".join(there)[:300] or "none"
    for column, wanted, guess in (("text", text, _likely_text), ("emotion", emotion, _likely_emotion)):
        if wanted not in there:
            option = f"{column}_column={guess(rows, there, text) or 'NAME'}"
            raise UserError(f"{path.name} has no column {wanted or column!r}; it has {listed}: if one of them holds the {column}, say {option}")
    return text, emotion


def _empathetic(there: Iterable[str]) -> bool:
    """Whether these are the columns of EmpatheticDialogues, where `context` is the emotion and `prompt` what was felt."""
    return {"conv_id", "context", "prompt", "utterance"} <= set(there)


def _class_label(rows: Sequence[Placed]) -> bool:
    """Whether a column `label` has numbers of classes, or lists of them, as in files of Hugging Face's datasets and in GoEmotions' own."""
    values = [row.get("label") for _, row in rows[:50]]
    return bool(values) and all(isinstance(value, int) or re.fullmatch(r"\d+(,\d+)*", str(value)) for value in values)


def _the_one(row: Record) -> str | None:
    """The emotion of a row with a column of 0 and 1 for each; None if it has none or several, or its rater found it unclear."""
    found = [name for name in GOEMOTIONS if str(row.get(name)) in ("1", "True", "1.0")]
    return found[0] if len(found) == 1 else None


def _single(value: object) -> bool:
    return not (isinstance(value, list) and len(value) != 1) and not re.fullmatch(r"\d+(,\d+)+", str(value))


def _said(value: object, column: str) -> object:
    return value.replace("_comma_", ",") if isinstance(value, str) and column in ("prompt", "utterance") else value


def _named(rows: Sequence[Placed], column: str, path: Path, names: Sequence[str] | None) -> _Names:
    values = [value for _, row in rows if _single(value := row.get(column))]
    numbers = [_number(value) for value in values]
    if not numbers or any(number is None for number in numbers):
        return _Names(())
    beside = next((path.with_name(name) for name in NAMES if path.with_name(name).is_file()), None)
    found = names or (beside.read_text(encoding="utf-8").split("\n") if beside else None)
    if found is None and column == "label" and "comment_id" in rows[0][1]:
        found = GOEMOTIONS
    found = [name.strip() for name in found or () if name.strip()]
    highest = max(number for number in numbers if number is not None)
    if highest >= len(found):
        where = f"{beside.name if beside else 'the file'} names {len(found)}" if found else "nothing says what they mean"
        raise UserError(
            f"{path.name}: the column {column!r} has numbers up to {highest}, and {where}: put a file {NAMES[0]} beside it with a name a line, "
            "from number 0 on, or say emotion_column=NAME of a column with words"
        )
    return _Names(tuple(found))


@dataclass(frozen=True)
class _Names:
    """What a cell of the column of emotions means."""

    by_number: tuple[str, ...]

    def __call__(self, value: object) -> object:
        number = _number(value)
        return self.by_number[number] if self.by_number and number is not None else value


def _number(value: object) -> int | None:
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,4}", str(value)):
        return None
    return int(str(value))


def _likely_text(rows: Sequence[Placed], there: Sequence[str], _: str) -> str | None:
    """The column whose cells are longest."""
    sizes = {name: sum(len(str(row.get(name, ""))) for _, row in rows[:200] if isinstance(row.get(name), str)) for name in there}
    best = max(sizes, key=lambda name: sizes[name], default=None)
    return best if best and sizes[best] else None


def _likely_emotion(rows: Sequence[Placed], there: Sequence[str], text: str) -> str | None:
    """The column whose few values come back."""
    kinds = {name: len({str(row.get(name)) for _, row in rows}) for name in there if name != text}
    few = {name: n for name, n in kinds.items() if 1 < n <= max(2, len(rows) // 2)}
    return min(few, key=lambda name: (not re.search("emotion|label|class|sentiment|feeling", name, re.IGNORECASE), few[name]), default=None)


def class_names(metadata: Mapping[bytes, bytes] | None, column: str) -> list[str] | None:
    """What a parquet file of Hugging Face's datasets says that the numbers of a column mean."""
    try:
        feature = json.loads((metadata or {})[b"huggingface"])["info"]["features"][column]
        names = feature.get("names") or feature.get("feature", {}).get("names") or feature.get("_type", {}).get("names")
    except (KeyError, ValueError, TypeError, AttributeError):
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"the names of the classes of {column!r} are no list of words: {shown(names)}")
    return names

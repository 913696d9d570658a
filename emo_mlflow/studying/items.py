"""Multiple-choice items: the built-in ones, or a user's JSONL file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from emo_mlflow.common.names import shown
from emo_mlflow.errors import UserError

FEWEST = 6


@dataclass(frozen=True)
class Question:
    """A question with its choices; `answer` is the number of the right one, from 0."""

    question: str
    choices: tuple[str, ...]
    answer: int


def load_items(source: str) -> tuple[Question, ...]:
    """The items of `builtin` or of a .jsonl file, each line an object with question, choices and answer.

    Raises:
        UserError: naming the line that is none, or if there are too few.
    """
    builtin = files("emo_mlflow").joinpath("data/multiple_choice.jsonl")
    text = builtin.read_text(encoding="utf-8") if source == "builtin" else _text(Path(source))
    found = tuple(_items(text, source))
    if len(found) < FEWEST:
        raise UserError(f"items={source!r} has {len(found)} items: give at least {FEWEST}, or items=builtin")
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"items={str(path)!r} cannot be read ({error}): give builtin, or a .jsonl file with question, choices and answer") from None


def _items(text: str, source: str) -> Iterator[Question]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            yield _question(row, f"items={source!r}, line {number}")


def _question(row: Any, where: str) -> Question:
    if not isinstance(row, dict) or not {"question", "choices", "answer"} <= set(row):
        raise UserError(f"{where} is not an object with question, choices and answer")
    choices, answer = row["choices"], row["answer"]
    texts = [row["question"], *choices] if isinstance(choices, list) else [None]
    if not all(isinstance(text, str) and text.strip() for text in texts) or not 2 <= len(choices) <= 26:
        raise UserError(f"{where}: question and choices must be texts, and there must be 2 to 26 choices: found {shown(row)}")
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise UserError(f"{where}: answer={shown(answer)} is not the number of a choice, from 0 to {len(choices) - 1}")
    return Question(row["question"], tuple(choices), answer)

"""When two texts are the same prompt."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

from emo_mlflow.common.names import of_word
from emo_mlflow.types import Turns

RULE = (
    "texts of an emotion count once if they differ in case, spacing or punctuation only (a ?, symbols and emoji are no punctuation), "
    "and under several emotions not at all, unless they differ in a !"
)
_QUESTIONS = "?\u061f\u203d"
_AGAIN = re.compile(rf"([!{_QUESTIONS}])\1+")
_FACES = re.compile(r"[:;=]['^-]?[()\[\]{}|/\\<>*]|</3")


def exclaimed(text: str) -> str:
    """A text without case, spacing and punctuation, but for what carries a feeling: texts that agree in this mean the same.

    Letters with their marks stay, digits, symbols and emoji, faces such as `:)`, and one of repeated ! or ?.
    """
    folded = _AGAIN.sub(r"\1", unicodedata.normalize("NFKC", text.casefold()))
    kept = "".join(map(_kept, folded)).split()
    return " ".join([*kept, *_FACES.findall(folded)]) or text.strip()


def normalised(text: str) -> str:
    """The same, and without !: texts that agree in this are one prompt, for one that is said louder is no further evidence."""
    found = exclaimed(text)
    return " ".join(word for word in found.split() if word != "!") or found


def alike(text: str, before: Turns | None, of_text: Callable[[str], str] = normalised) -> str:
    """The same of a conversation, turn by turn; of one turn or a text, that of the text."""
    return "\n".join([*(f"{role}: {of_text(content)}" for role, content in before or ()), of_text(text)])


def _kept(character: str) -> str:
    if "\ufe00" <= character <= "\ufe0f":  # choose between the drawings of one character
        return ""
    if of_word(character):
        return character
    category = unicodedata.category(character)
    if category[0] == "S" or character in "!" + _QUESTIONS:
        return f" {character} "
    return "" if category == "Cf" else " "  # joiners and soft hyphens stand inside of words

"""Names that come from users, files and runs, before they become part of a metric, a tensor, a figure or a file's path."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import PurePath
from reprlib import repr as short

from emo_mlflow.errors import UserError
from emo_mlflow.types import digest

LONGEST = 64  # an effect's metric joins an emotion, a scorer and a label, and MLflow takes 250 characters
RESERVED = (".basis", ".explained")  # what files of directions put behind an emotion
_RESERVED_FILES = re.compile(
    r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE
)  # devices on Windows, whatever follows the dot

HALF = re.compile("[\ud800-\udfff]")  # of a character: a lone surrogate, which nothing can write or tokenise
_LINE_ENDS = re.compile("\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_JOINERS = "\u200c\u200d"  # stand inside of words in Persian and in Indian scripts
_UNSHOWN = re.compile("[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def check_name(value: object, where: str) -> str:
    """A name as it is, if it is of letters with their marks, digits, spaces, dots, hyphens and underscores, in any script.

    Args:
        where: names the value in the error: a file, a line, a parameter.

    Raises:
        UserError: for anything else.
    """
    if not isinstance(value, str) or not _is_name(value):
        raise UserError(f"{where} {shown(value)} is not a name of letters, digits, spaces, dots and hyphens")
    name = str(value)
    if len(name) > LONGEST:
        raise UserError(f"{where} {shown(name)} has {len(name)} characters: give at most {LONGEST}")
    if name.endswith(RESERVED):
        raise UserError(
            f"{where} {shown(name)} ends in {' or '.join(RESERVED)}, which files of directions keep for themselves"
        )
    return name


def same_name(name: str) -> str:
    """What two spellings of one name share: neither case nor the way in which accents are stored counts."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def short_name(model: str) -> str:
    """A model's name without its folder or owner, and without the ending of a GGUF file; on one line."""
    return one_line(PurePath(model).name.removesuffix(".gguf"))


def first_spellings(names: Iterable[str]) -> dict[str, str]:
    """Each name, and the spelling of it that came first."""
    firsts: dict[str, str] = {}
    return {name: firsts.setdefault(same_name(name), name) for name in names}


def _is_name(text: str) -> bool:
    """Whether a text has a letter or a digit and nothing odd, starts with no mark, and has no space or joiner at its ends."""
    if not all(of_word(c) or c in ".- " + _JOINERS for c in text) or text != text.strip(" " + _JOINERS):
        return False
    return any(of_word(c) and not is_mark(c) for c in text) and not is_mark(text[0])


def is_mark(character: str) -> bool:
    """Whether a character is part of the one before it: an accent, a vowel sign, a tone."""
    return unicodedata.category(character)[0] == "M"


def of_word(character: str) -> bool:
    """Whether a character is a letter, a mark on one, a digit or an underscore. (The \\w of regular expressions leaves marks out.)"""
    return character.isalnum() or character == "_" or unicodedata.category(character)[0] in "LMN"


def check_revision(text: str, where: str) -> str:
    """A branch, a tag or a commit of a hub as it is; the hub's client looks for it under a folder of its cache.

    Raises:
        UserError: for anything that could be a path elsewhere.
    """
    if not re.fullmatch(r"\w[\w-]*([./]\w[\w-]*)*", text, re.ASCII):
        raise UserError(f"{where} {shown(text)} is no revision: give a branch, a tag or a commit")
    return text


def file_stem(name: str) -> str:
    """A file's name without its ending, on every system, made of any text: short, in one folder, no device.

    A text that is a good file name already stays as it is; others keep what is good in them and get a digest.
    """
    cleaned = re.sub(r"[^\w.\-]+", "_", name).strip("._")
    kept = cleaned.encode()[:LONGEST].decode(errors="ignore")
    if kept and kept == cleaned and not _RESERVED_FILES.fullmatch(kept):
        return kept
    return f"{kept.replace('.', '_') or 'unnamed'}-{digest(name, 8)}"


def shown(value: object) -> str:
    """Anything as a short text in one line, for an error."""
    return " ".join(short(value).split())


def printable(text: str) -> str:
    """A text whose characters all show: what steers a terminal, turns the direction of writing or is half a character becomes U+FFFD."""
    return _UNSHOWN.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(text: str) -> str:
    """A text in one line, for a table's cell, with a mark where a line ends."""
    return printable(_LINE_ENDS.sub(" ⏎ ", text))

"""A data set's file: JSONL, CSV, TSV or parquet rows, read and checked."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from emo_mlflow.common.files import check_there
from emo_mlflow.common.names import HALF, check_name, shown
from emo_mlflow.errors import UserError, reason_of
from emo_mlflow.prompts.columns import PLAIN, Layout, Placed, Record, class_names, with_columns
from emo_mlflow.prompts.conversations import COLUMN, conversation
from emo_mlflow.prompts.delimited import delimited_rows, read_text
from emo_mlflow.types import Role, Turns

SUFFIXES = (".jsonl", ".csv", ".tsv", ".txt", ".parquet")


class DatasetRow(NamedTuple):
    """A row, checked; `before` and the text as of a `Prompt`."""

    text: str
    emotion: str
    role: Role | None
    before: Turns | None = None


def builtin_rows() -> list[DatasetRow]:
    """The built-in texts."""
    text = files("emo_mlflow").joinpath("data/prompts.jsonl").read_text(encoding="utf-8")
    return [DatasetRow(row["text"], row["emotion"], row["role"]) for row in map(json.loads, text.splitlines())]


def read_rows(path: Path, layout: Layout = PLAIN) -> list[DatasetRow]:
    """The texts of a file as they are, spaces and line ends at their ends too, with their emotion and, where it says so, their role.

    Raises:
        UserError: if it cannot be read, or lacks a column or a value; the message says which option would read it, where one would.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"dataset={str(path)!r} is neither builtin nor a file that ends in {', '.join(SUFFIXES)}")
    check_there(path, "dataset")
    records, metadata = read_records(path, layout.encoding)
    if not records:
        raise UserError(f"{path.name} has no rows: give at least two texts of each of two emotions")
    names = class_names(metadata, layout.emotion_column or "label")
    return [_checked(f"{path.name}, {place}", record) for place, record in with_columns(records, layout, path, names)]


def read_records(path: Path, encoding: str) -> tuple[list[Placed], Mapping[bytes, bytes] | None]:
    """Every row with the place where a person finds it (its line in a text file, its number in a parquet file), and a parquet file's metadata."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            # Not pandas, which turns lists and nulls into arrays and NaN, and reads metadata that another program may have got wrong.
            table = pq.read_table(path, partitioning=None)
            return [(f"row {number}", row) for number, row in enumerate(table.to_pylist(), start=1)], table.schema.metadata
        text = read_text(path, encoding)
    except UserError:  # a ValueError too
        raise
    except (pa.ArrowException, ValueError, OSError) as error:
        raise UserError(f"{path.name} cannot be read as {suffix[1:]}: {reason_of(error)}") from None
    return list((_json_lines if suffix == ".jsonl" else delimited_rows)(text.replace("\r\n", "\n").replace("\r", "\n"), path.name)), None


def _json_lines(text: str, name: str) -> Iterator[Placed]:
    # Not splitlines(), which also cuts at separators that JSON allows inside a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise UserError(f"{name}, line {number} is not JSON: {reason}") from None
        if not isinstance(record, dict):
            raise UserError(f"{name}, line {number} is not an object with text and emotion")
        yield f"line {number}", record


def _checked(place: str, record: Record) -> DatasetRow:
    emotion = record.get("emotion")
    emotion = check_name(unicodedata.normalize("NFC", emotion.strip()) if isinstance(emotion, str) else emotion, f"{place}: emotion")
    role = _role(place, record.get("role"))
    if "text" not in record or isinstance(record["text"], list):
        text, before, of_turns = conversation(place, record.get("text", record.get(COLUMN)))
        if role not in (None, of_turns):
            last, wanted = ("a user's", "the assistant's") if of_turns == "test" else ("the assistant's", "a user's")
            raise UserError(f"{place}: role {role}, and the conversation ends with {last} turn: end it with {wanted}, or leave the role out")
        return DatasetRow(text, emotion, of_turns, before)
    return DatasetRow(_text(place, record["text"]), emotion, role)


def _text(place: str, text: object) -> str:
    if text is None or (isinstance(text, str) and not text.strip()):
        raise UserError(f"{place}: the text is empty: fill it in or remove the row")
    if not isinstance(text, str):
        raise UserError(f"{place}: the text is not a string: {shown(text)}")
    if HALF.search(text):
        raise UserError(f"{place}: the text holds half a character (a lone surrogate): {shown(text)}")
    return text


def _role(place: str, role: object) -> Role | None:
    if role is None or role == "":
        return None
    if not isinstance(role, str) or role.strip() not in ("fit", "test"):
        raise UserError(f"{place}: role {shown(role)} is neither fit nor test")
    return "fit" if role.strip() == "fit" else "test"

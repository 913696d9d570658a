"""A data set's file: JSONL, CSV or parquet rows, read and checked."""

from __future__ import annotations

import csv
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from importlib.resources import files
from io import StringIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from emo_mlflow.common.files import check_there
from emo_mlflow.common.names import check_name, shown
from emo_mlflow.errors import UserError, reason_of
from emo_mlflow.types import Role

SUFFIXES = (".jsonl", ".csv", ".parquet")


DatasetRow = tuple[str, str, Role | None]  # text, emotion, role


def builtin_rows() -> list[DatasetRow]:
    """The built-in texts."""
    text = files("emo_mlflow").joinpath("data/prompts.jsonl").read_text(encoding="utf-8")
    return [(row["text"], row["emotion"], row["role"]) for row in map(json.loads, text.splitlines())]


_Record = Mapping[str, object]


def read_rows(path: Path) -> list[DatasetRow]:
    """The texts of a file as they are, spaces and line ends at their ends too, with their emotion and, where it says so, their role.

    Raises:
        UserError: if it cannot be read, or lacks a column or a value.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"dataset={str(path)!r} is neither builtin nor a file that ends in {', '.join(SUFFIXES)}")
    check_there(path, "dataset")
    records = _records(path)
    if not records:
        raise UserError(f"{path.name} has no rows: give at least two texts of each of two emotions")
    columns = dict.fromkeys(name for _, record in records for name in record)
    for column in ("text", "emotion"):
        if column not in columns:
            raise UserError(f"{path.name} has no column {column!r}; it has {', '.join(columns)[:300] or 'none'}")
    return [_checked(f"{path.name}, {place}", record) for place, record in records]


def _records(path: Path) -> list[tuple[str, _Record]]:
    """Every row with the place where a person finds it: its line in a text file, its number in a parquet file."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            return list(_parquet_rows(path))
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets write a byte order mark
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    except (pa.ArrowException, ValueError, OSError) as error:
        raise UserError(f"{path.name} cannot be read as {suffix[1:]}: {reason_of(error)}") from None
    return list((_json_lines if suffix == ".jsonl" else _csv_rows)(text, path.name))


def _parquet_rows(path: Path) -> Iterator[tuple[str, _Record]]:
    # Not pandas, which turns lists and nulls into arrays and NaN, and reads metadata that another program may have got wrong.
    records = pq.read_table(path, partitioning=None).to_pylist()
    yield from ((f"row {number}", record) for number, record in enumerate(records, start=1))


def _json_lines(text: str, name: str) -> Iterator[tuple[str, _Record]]:
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


def _csv_rows(text: str, name: str) -> Iterator[tuple[str, _Record]]:
    # Not pandas, which takes the first field for an index when a text with a comma has no quotes.
    reader = csv.reader(StringIO(text), strict=True)
    header: list[str] = []
    start = 1
    try:
        for fields in reader:
            place, start = f"line {start}", reader.line_num + 1
            if not fields:
                continue
            if not header:
                header = [field.strip() for field in fields]
                if len(set(header)) < len(header):
                    raise UserError(f"{name} names a column twice: {', '.join(header)}")
            elif len(fields) != len(header):
                raise UserError(
                    f"{name}, {place} has {len(fields)} fields and the header {len(header)}: put a text with commas in quotes"
                )
            else:
                yield place, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise UserError(f"{name}, line {start} cannot be read as csv: {error}") from None


def _checked(place: str, record: _Record) -> DatasetRow:
    text, emotion, role = record.get("text"), record.get("emotion"), record.get("role")
    if text is None or (isinstance(text, str) and not text.strip()):
        raise UserError(f"{place}: the text is empty: fill it in or remove the row")
    if not isinstance(text, str):
        raise UserError(f"{place}: the text is not a string: {shown(text)}")
    if re.search("[\ud800-\udfff]", text):
        raise UserError(f"{place}: the text holds half a character (a lone surrogate): {shown(text)}")
    emotion = check_name(unicodedata.normalize("NFC", emotion.strip()) if isinstance(emotion, str) else emotion, f"{place}: emotion")
    if role is None or role == "":
        return text, emotion, None
    if not isinstance(role, str) or role.strip() not in ("fit", "test"):
        raise UserError(f"{place}: role {shown(role)} is neither fit nor test")
    return text, emotion, "fit" if role.strip() == "fit" else "test"

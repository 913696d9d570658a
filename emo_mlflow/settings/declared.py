"""Parameters, each declared once, as a field of a settings class: options, MLproject, documentation, params and what may change come from that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from numbers import Number
from os import PathLike
from typing import Any, Literal

from emo_mlflow.common.names import shown
from emo_mlflow.errors import UserError

Group = Literal["what", "where", "how much", "scoring", "running", "logging"]
METADATA = "parameter"  # of a field


@dataclass(frozen=True)
class Parameter:
    """What a person may set.

    Attributes:
        parse: reads its text.
        default: as a text, outside every profile.
        help: what it means, in a sentence.
        group: under which it is listed.
        how: it says how a sweep is run and not what it computes, so it may be another when the sweep is resumed.
        of_child: the runs of a sweep's conditions have it as a param.
        apart: sweeps that differ in it write different texts, which a comparison says; sweeps of one model are named by the two
            smallest of these numbers that differ. 0: texts do not depend on it, or the tables show it.
        before: what sweeps did that were made before there was this parameter; None if there always was. At this value it is not in
            the hash of a sweep's work, so that a sweep that was begun earlier goes on.
    """

    parse: Callable[[str], Any]
    default: str
    help: str
    group: Group
    how: bool = False
    of_child: bool = False
    apart: int = 0
    before: str | None = None


def parameter(
    parse: Callable[[str], Any],
    default: str,
    help: str,
    group: Group,
    *,
    how: bool = False,
    of_child: bool = False,
    apart: int = 0,
    before: str | None = None,
) -> Any:
    """A field of a settings class that a person may set; see `Parameter`."""
    return field(metadata={METADATA: Parameter(parse, default, help, group, how, of_child, apart, before)})


def same_as(settings: type[Any], name: str) -> Any:
    """A field that is the same parameter as one of another settings class."""
    return field(metadata={METADATA: table_of(settings)[name]})


def table_of(settings: type[Any]) -> dict[str, Parameter]:
    """The parameters of a settings class by name, in the order of its fields."""
    return {item.name: item.metadata[METADATA] for item in fields(settings) if METADATA in item.metadata}


def read(table: Mapping[str, Parameter], given: Mapping[str, str | None], defaults: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The value of every parameter of a table, in its order; None and empty texts leave the default.

    Args:
        defaults: what a profile sets instead of the table's own defaults.

    Raises:
        UserError: naming the parameter, its value and what it may be.
    """
    if unknown := sorted(name for name, text in given.items() if text not in (None, "") and name not in table):
        raise UserError(f"unknown parameter {unknown[0]!r}: there are {', '.join(table)}")
    values: dict[str, Any] = {}
    for name, item in table.items():
        text = (given.get(name) or (defaults or {}).get(name) or item.default).strip()
        try:
            values[name] = item.parse(text)
        except UserError as error:
            raise UserError(f"{name}={text!r} {error}") from None
    return values


def as_texts(given: Mapping[str, Any]) -> dict[str, str | None]:
    """Values from Python as a person writes them in a terminal: `True` is true, a list has commas, a mapping is `name:value`.

    Raises:
        UserError: for an empty list, which would say what an empty text does, or anything that is not texts and numbers.
    """
    return {name: None if value is None else _as_text(name, value) for name, value in given.items()}


def _as_text(name: str, value: Any) -> str:
    if isinstance(value, Mapping) and value:
        return ",".join(f"{key}:{_one(name, item)}" for key, item in value.items())
    if isinstance(value, (list, tuple, set, frozenset, range)) and len(value):
        return ",".join(_one(name, item) for item in value)
    return _one(name, value)


def _one(name: str, value: Any) -> str:
    if not isinstance(value, (str, Number, PathLike)):
        raise UserError(f"{name}={shown(value)} is neither a text, a number, nor a list of them: give one, or leave it out for the default")
    return str(value).lower() if isinstance(value, bool) else str(value)

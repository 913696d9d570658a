"""Settings as a person asks for them: defaults are read from the same declarations as everywhere."""

from __future__ import annotations

from typing import Any, TypeVar

from emo_mlflow.settings.declared import read, table_of

S = TypeVar("S")


def asked(settings: type[S], **given: Any) -> S:
    """Settings of a class; what is given may be a value, which is turned into the text that a person writes."""
    return settings(**read(table_of(settings), {name: _text(value) for name, value in given.items()}))


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)

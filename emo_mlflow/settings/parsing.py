"""Values as a person writes them: how each text is read, and what is said of one that cannot be."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from emo_mlflow.errors import UserError
from emo_mlflow.settings.direction_choice import parse_direction
from emo_mlflow.settings.schedules import schedule_factors
from emo_mlflow.types import ASKING


@dataclass(frozen=True)
class Choice:
    """Reads one of the values."""

    values: tuple[str, ...]

    def __call__(self, text: str) -> str:
        """The text, if it is one of them."""
        if text not in self.values:
            raise UserError(f"is not one of {', '.join(self.values)}")
        return text


def choice(*values: str) -> Choice:
    """Reads one of the values."""
    return Choice(values)


def integer(least: int) -> Callable[[str], int]:
    """Reads a whole number of at least `least`."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[+-]?\d{1,18}", text) or int(text) < least:
            raise UserError(f"is not a whole number of at least {least}")
        return int(text)

    return parse


def or_nothing(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Reads as `parse` does, and an empty text as None."""
    return lambda text: parse(text) if text else None


def number(text: str) -> float:
    """A finite number."""
    try:
        value = float(text)
    except ValueError:
        raise UserError("is not a number") from None
    if not math.isfinite(value):
        raise UserError("is not a finite number")
    return value


def temperature(text: str) -> float:
    """A number of at least 0."""
    if (value := number(text)) < 0:
        raise UserError("is below 0; 0 is greedy decoding")
    return value


def boolean(text: str) -> bool:
    """true or false, in the words people use."""
    if text.lower() not in ("true", "false", "1", "0", "yes", "no", "on", "off"):
        raise UserError("is neither true nor false")
    return text.lower() in ("true", "1", "yes", "on")


def items(text: str) -> list[str]:
    """Distinct items between commas."""
    found = [item.strip() for item in text.split(",")]
    if not all(found):
        raise UserError("has an empty item; separate items with single commas")
    return list(dict.fromkeys(found))


def each(parse: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    """Reads a list, each item as `parse` does."""
    return lambda text: tuple(dict.fromkeys(parse(item) for item in items(text)))


def arms(text: str) -> tuple[str, ...]:
    """What is compared with the baseline: `direction`, and kinds of asking."""
    found = each(choice("direction", *ASKING))(text)
    if "direction" not in found:
        raise UserError(f"has nothing to compare {found[0]} with: give direction,{','.join(found)}")
    return found


def emotions(text: str) -> tuple[str, ...] | None:
    """Names, or None for all."""
    return None if text == "all" else tuple(items(text))


def run_ids(text: str) -> tuple[str, ...]:
    """Ids of runs between commas; a run that is named twice stays so, since that is a mistake to be told of."""
    found = tuple(part.strip() for part in text.split(","))
    if text and not all(found):
        raise UserError("has an empty item: separate run ids with single commas")
    return found if text else ()


def layers(text: str) -> str:
    """A choice of layers, resolved once the model is known (`layers.resolve_layers`)."""
    part = r"\d{1,6}(-\d{1,6}(/[1-9]\d{0,5})?|(\+\d{1,6})+)?"
    if not re.fullmatch(rf"all(/[1-9]\d{{0,5}})?|{part}(,{part})*", text.replace(" ", "")):
        raise UserError("is not a choice of layers: use all, all/6 (every sixth), 0-11, 0-11/2, 0,3,6, or bands 8+9+10")
    return text.replace(" ", "")


def schedule(text: str) -> str:
    """A schedule of alpha, as `schedules.schedule_factors` reads it."""
    schedule_factors(text, 1)
    return text


def direction(text: str) -> str:
    """Which direction is fitted, as `direction_choice.parse_direction` reads it."""
    try:
        parse_direction(text)
    except UserError:
        raise UserError("is no direction: use mean_diff, pc1 (pc2, ...), lda, logistic or subspace:K") from None
    return text


def method(text: str) -> str:
    """A way to fit a single direction."""
    if direction(text).startswith("subspace"):
        raise UserError("is no single direction: use mean_diff, pc1 (pc2, ...), lda or logistic")
    return text


def batch_size(text: str) -> int | None:
    """A number of rows, or None for auto."""
    return None if text == "auto" else integer(1)(text)


def ray_address(text: str) -> str:
    """Where a Ray cluster answers: host:port, or local."""
    if text != "local" and not re.fullmatch(r"[\w.-]+:\d{1,5}", text, re.ASCII):
        raise UserError("is not host:port of a Ray cluster's head, such as 10.0.0.1:6379 (to submit from outside, see docs/scale.md)")
    return text


def needed(text: str) -> str:
    """Any text but an empty one."""
    if not text:
        raise UserError("is needed: it has no default")
    return text


def as_it_is(text: str) -> str:
    """Any text."""
    return text

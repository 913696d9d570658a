"""A judge's address and rubric: what a language model is asked about a text, and how its answer is read."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit, urlunsplit

import yaml

from emo_mlflow.common.names import check_name, shown
from emo_mlflow.errors import UserError, reason_of
from emo_mlflow.types import digest

SCHEME = "judge:"
SHAPE = "judge:http://HOST:PORT/v1?model=NAME&rubric=FILE"
_KEYS = ("name", "instructions", "labels")
_ANSWER = re.compile(r"\{[^{}]*\}")


@dataclass(frozen=True)
class Rubric:
    """What a judge is asked.

    Attributes:
        name: the prefix of its metrics.
        instructions: how to judge, as the system's turn.
        labels: the least and the largest number of each.
    """

    name: str
    instructions: str
    labels: tuple[tuple[str, float, float], ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        """`name.label`."""
        return tuple(f"{self.name}.{label}" for label, _, _ in self.labels)

    def messages(self, text: str) -> list[dict[str, str]]:
        """The conversation that asks about a text. The text is a turn of its own, as JSON, so that it is not taken for instructions."""
        spans = ", ".join(f'"{label}": a number from {low:g} to {high:g}' for label, low, high in self.labels)
        asked = f"The user's message is the text to judge, as a JSON string. Answer with nothing but JSON: {{{spans}}}"
        system = f"{self.instructions.strip()}\n\n{asked}"
        return [{"role": "system", "content": system}, {"role": "user", "content": json.dumps(text, ensure_ascii=False)}]

    @property
    def schema(self) -> dict[str, Any]:
        """The answer as a JSON schema, for servers that hold their models to one."""
        numbers = {label: {"type": "number", "minimum": low, "maximum": high} for label, low, high in self.labels}
        return {"type": "object", "properties": numbers, "required": list(numbers), "additionalProperties": False}

    def read(self, answer: str) -> tuple[float, ...]:
        """The numbers in an answer; NaN for each that is missing, no number, or out of range."""
        for found in _ANSWER.findall(answer):
            try:
                values = json.loads(found)
            except (ValueError, RecursionError):
                continue
            return tuple(_number(values.get(label), low, high) for label, low, high in self.labels)
        return tuple(math.nan for _ in self.labels)


def _number(value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        return math.nan
    return float(value)


@dataclass(frozen=True)
class Address:
    """Where a judge is asked, and for which model.

    Attributes:
        url: of the server's OpenAI-compatible API, which ends in /v1 as a rule.
    """

    url: str
    model: str
    rubric: Rubric

    @property
    def identity(self) -> str:
        """Of what decides an answer, as far as that can be known from here: the model's name and the rubric, and not the server."""
        return digest([self.model, self.rubric.name, self.rubric.instructions, self.rubric.labels])


def is_judge(name: str) -> bool:
    """Whether a scorer's name is a judge's address."""
    return name.startswith(SCHEME)


def parse_address(name: str) -> Address:
    """Reads `judge:URL?model=NAME&rubric=FILE` and the rubric.

    Raises:
        UserError: for another shape, a password in it, or a rubric that cannot be read.
    """
    parts = urlsplit(name.removeprefix(SCHEME))
    query = parse_qs(parts.query)
    if parts.scheme not in ("http", "https") or not parts.hostname or set(query) != {"model", "rubric"} or parts.fragment:
        raise UserError(f"the judge {shown(name)} is not of the form {SHAPE}")
    if parts.username or parts.password:
        raise UserError("a judge's address is logged, so it may hold no password: put a key into the environment variable EMO_MLFLOW_JUDGE_KEY")
    url = urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))
    return Address(url, query["model"][0], read_rubric(Path(query["rubric"][0])))


def read_rubric(path: Path) -> Rubric:
    """Reads a rubric: YAML with `name`, `instructions`, and `labels`, each with its least and largest number.

    Raises:
        UserError: if it cannot be read or says something else.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"cannot read the rubric {path}: {reason_of(error)}") from None
    if not isinstance(found, dict) or set(found) != set(_KEYS):
        raise UserError(f"the rubric {path} must have {', '.join(_KEYS)} and nothing else")
    labels = found["labels"]
    if not isinstance(found["instructions"], str) or not found["instructions"].strip() or not isinstance(labels, dict) or not labels:
        raise UserError(f"the rubric {path}: instructions must be a text, and labels names with [least, largest] each")
    spans = []
    for label, span in labels.items():
        numbers = span if isinstance(span, list) else []
        if len(numbers) != 2 or not all(isinstance(x, int | float) and math.isfinite(x) for x in numbers) or not numbers[0] < numbers[1]:
            raise UserError(f"the rubric {path}: label {shown(label)} has {shown(span)}; give [least, largest], such as [0, 1]")
        spans.append((check_name(label, f"the rubric {path}: label"), float(numbers[0]), float(numbers[1])))
    return Rubric(check_name(found["name"], f"the rubric {path}: name"), found["instructions"], tuple(spans))

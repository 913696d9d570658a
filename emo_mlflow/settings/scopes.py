"""Which positions are edited, as a person writes it: a scope, with a number of tokens where it has one."""

from __future__ import annotations

import re
from collections.abc import Sequence

from emo_mlflow.errors import UserError
from emo_mlflow.types import Scope

CHOICES = "window, generated, all, prompt, prompt:K or first:K"


def scope(text: str) -> str:
    """Reads a scope: `window`, `generated`, `all`, `prompt`, the last K tokens of it (`prompt:K`), or the first K new ones (`first:K`)."""
    if not re.fullmatch(r"window|generated|all|prompt(:[1-9]\d{0,5})?|first:[1-9]\d{0,5}", text):
        raise UserError(f"is not one of {CHOICES}")
    return text


def scope_and_windows(text: str, windows: Sequence[int]) -> tuple[Scope, tuple[int | None, ...]]:
    """A scope's name, and the numbers of tokens that are swept: of `window` those that were asked for, of the others their own or none."""
    name, _, tokens = text.partition(":")
    known: dict[str, Scope] = {"window": "window", "generated": "generated", "all": "all", "prompt": "prompt", "first": "first"}
    if name == "window":
        return "window", tuple(windows)
    return known[name], (int(tokens) if tokens else None,)

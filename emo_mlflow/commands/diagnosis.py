"""Checks to findings to lines: a check that fails is a finding like any other."""

from __future__ import annotations

import platform
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from emo_mlflow import __version__
from emo_mlflow.errors import reason_of

Level = Literal["ok", "note", "FAIL"]
LEVELS: tuple[Level, ...] = ("ok", "note", "FAIL")
WIDTH, LONGEST = 110, 220  # characters of a line, and of an error
REINSTALL = 'install the package again in a fresh environment: python -m venv env, env/bin/pip install "emo_mlflow"'


@dataclass(frozen=True)
class Diagnosis:
    """One line of the answer.

    Attributes:
        level: `ok`; `note` for what a default sweep does not need; `FAIL` for what it does.
        advice: what to do about it; empty if nothing is.
    """

    name: str
    level: Level
    text: str
    advice: str = ""


@dataclass(frozen=True)
class Check:
    """Looks at one thing.

    Attributes:
        needed: whether a default sweep fails where this check does.
        advice: what to do if the check itself breaks.
    """

    name: str
    look: Callable[[], Iterable[Diagnosis]]
    needed: bool = True
    advice: str = REINSTALL


def examine(checks: Iterable[Check]) -> Iterator[Diagnosis]:
    """The findings of all checks, in their order; no error of one stops the others."""
    for check in checks:
        try:
            yield from list(check.look())
        except Exception as error:
            yield Diagnosis(check.name, "FAIL" if check.needed else "note", f"{type(error).__name__}: {reason_of(error, LONGEST)}", check.advice)


def lines_of(finding: Diagnosis, name_width: int) -> list[str]:
    """A finding in columns, long texts wrapped under themselves."""
    start = f"  {finding.level:<5} {finding.name:<{name_width}}  "
    texts = [finding.text, *([f"-> {finding.advice}"] if finding.advice else [])]
    wrapped = [
        line
        for text in texts
        for line in textwrap.wrap(text, WIDTH - len(start), break_long_words=False, break_on_hyphens=False)
    ]
    return [(start if i == 0 else " " * len(start)) + line for i, line in enumerate(wrapped)]


def report(checks: Sequence[Check], say: Callable[[str], None]) -> int:
    """Looks at everything and says what it found, as it finds it; returns the exit code: 0 if a default sweep can run here, else 1."""
    say(f"emo_mlflow {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    say("")
    failed = 0
    for finding in examine(checks):
        failed += finding.level == "FAIL"
        for line in lines_of(finding, max(len(check.name) for check in checks)):
            say(line)
    say("")
    if failed:
        say(f"A default sweep cannot run here: {failed} thing{'s' * (failed > 1)} to mend, marked FAIL.")
    else:
        say("A default sweep can run here: emo-mlflow sweep")
    return 1 if failed else 0

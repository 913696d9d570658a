"""The built-in prompts, and a user's own: which texts directions are fitted on, and which are continued."""

from __future__ import annotations

import json
import random
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import pandas as pd

from emo_mlflow.errors import UserError
from emo_mlflow.types import Prompt, Role, digest

REFERENCE = "neutral"
READERS = (".jsonl", ".csv", ".parquet")


@dataclass(frozen=True)
class PromptSet:
    """The prompts of a sweep.

    Attributes:
        fit: what directions are fitted on: the chosen emotions and the reference.
        test: what is continued: the reference's test prompts, or all test prompts where there is no reference.
        emotions: in the data set's order, without the reference.
        reference: `neutral`, or None: each emotion is then compared with all others together.
        source: `builtin` or the file's name.
        split: how texts came to be for fitting or for testing.
        n_duplicates: texts that were dropped.
    """

    fit: tuple[Prompt, ...]
    test: tuple[Prompt, ...]
    emotions: tuple[str, ...]
    reference: str | None
    source: str
    split: str
    n_duplicates: int


def normalised(text: str) -> str:
    """A text without case, punctuation and spacing: texts that agree in this are the same prompt."""
    return " ".join(re.findall(r"\w+", text.casefold())) or text.strip()


def fit_hash(prompts: Iterable[Prompt]) -> str:
    """Identifies the texts that directions were fitted on, in whatever order."""
    return digest(sorted([prompt.emotion, prompt.text] for prompt in prompts))


def load_prompts(
    dataset: str = "builtin", *, emotions: Sequence[str] | None = None, max_samples: int, seed: int = 0
) -> PromptSet:
    """The built-in prompts, or those of a JSONL, CSV or parquet file with the columns text, emotion and optionally role.

    Texts that repeat, also under another emotion or role, count once, at their first place, and a warning says how many were
    dropped: a repeated prompt is no further evidence, and one that was fitted on must not be tested on. Without roles, half of
    every emotion's texts is fitted on and half is tested on.

    Args:
        emotions: the emotions to keep; None for all.
        max_samples: test prompts at most, drawn by `seed`; a larger number only adds to them.

    Raises:
        UserError: if the file cannot be read, lacks something, or does not have what is asked for.
    """
    if max_samples < 1:
        raise UserError(f"max_samples={max_samples} leaves nothing to continue: give at least 1")
    rows, source = (_builtin(), "builtin") if dataset == "builtin" else (_read(Path(dataset)), Path(dataset).name)
    prompts, split = _with_roles(distinct := _distinct(rows), seed, source)
    names = tuple(dict.fromkeys(prompt.emotion for prompt in prompts))
    reference = REFERENCE if REFERENCE in names else None
    chosen = _chosen(names, emotions, source)
    fit = tuple(
        p for p in prompts if p.role == "fit" and (p.emotion in chosen or p.emotion == reference or reference is None)
    )
    _check_fit(fit, (*chosen, *([reference] if reference else [])), source)
    test = [p for p in prompts if p.role == "test" and p.emotion == (reference or p.emotion)]
    if not test:
        raise UserError(
            f"{source} has no {reference or ''} texts to test on: give some the role test, or leave the roles out"
        )
    random.Random(f"test prompts {seed}").shuffle(test)
    return PromptSet(fit, tuple(test[:max_samples]), chosen, reference, source, split, len(rows) - len(distinct))


_Row = tuple[str, str, Role | None]


def _builtin() -> list[_Row]:
    text = files("emo_mlflow").joinpath("data/prompts.jsonl").read_text(encoding="utf-8")
    return [(row["text"], row["emotion"], row["role"]) for row in map(json.loads, text.splitlines())]


def _distinct(rows: Sequence[_Row]) -> list[_Row]:
    seen: dict[str, _Row] = {}
    for row in rows:
        seen.setdefault(normalised(row[0]), row)
    if dropped := len(rows) - len(seen):
        warnings.warn(f"{dropped} of {len(rows)} texts repeat others and were dropped", stacklevel=3)
    return list(seen.values())


def _with_roles(rows: Sequence[_Row], seed: int, source: str) -> tuple[list[Prompt], str]:
    if all(role is not None for *_, role in rows):
        return [Prompt(text, emotion, role) for text, emotion, role in rows if role], f"roles of {source}"
    if any(role is not None for *_, role in rows):
        raise UserError(f"{source} gives a role to some texts only: give fit or test to all of them, or to none")
    by_emotion: dict[str, list[str]] = {}
    for text, emotion, _ in rows:
        by_emotion.setdefault(emotion, []).append(text)
    prompts: list[Prompt] = []
    for emotion, texts in by_emotion.items():
        order = texts[:]
        random.Random(f"split {seed} {emotion}").shuffle(order)
        fitted = set(order[: -(-len(order) // 2)])
        prompts += [Prompt(text, emotion, "fit" if text in fitted else "test") for text in texts]
    return prompts, f"every emotion's texts split in half (seed {seed})"


def _chosen(names: Sequence[str], emotions: Sequence[str] | None, source: str) -> tuple[str, ...]:
    there = tuple(name for name in names if name != REFERENCE)
    if len(names) < 2:
        raise UserError(
            f"{source} has one emotion only ({names[0]}): a direction needs texts to differ from, such as {REFERENCE} ones"
        )
    for name in emotions or ():
        if name == REFERENCE:
            raise UserError(
                f"emotions: {REFERENCE} is what directions are measured against; choose among {', '.join(there)}"
            )
        if name not in there:
            raise UserError(f"emotions: {source} has no {name!r}; choose among {', '.join(there)}")
    return tuple(emotions) if emotions else there


def _check_fit(fit: Sequence[Prompt], needed: Sequence[str], source: str) -> None:
    counts = Counter(prompt.emotion for prompt in fit)
    for name in needed:
        if counts[name] < 2:
            raise UserError(
                f"{source} has {counts[name]} text(s) of {name!r} to fit a direction on: at least 2 are needed"
            )


def _read(path: Path) -> list[_Row]:
    if path.suffix not in READERS:
        raise UserError(f"dataset={str(path)!r} is neither builtin nor a file that ends in {', '.join(READERS)}")
    if not path.is_file():
        raise UserError(f"dataset={str(path)!r} does not exist")
    table = _read_table(path)
    for column in ("text", "emotion"):
        if column not in table.columns:
            raise UserError(
                f"{path.name} has no column {column!r}; it has {', '.join(map(str, table.columns)) or 'none'}"
            )
    if table.empty:
        raise UserError(f"{path.name} has no rows")
    roles = table["role"] if "role" in table.columns else [None] * len(table)
    rows = enumerate(zip(table["text"], table["emotion"], roles, strict=True), start=1)
    return [_checked(path.name, number, *row) for number, row in rows]


def _read_table(path: Path) -> pd.DataFrame:
    try:
        if path.suffix == ".jsonl":
            return pd.DataFrame(_json_lines(path))
        if path.suffix == ".csv":
            return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
        return pd.read_parquet(path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    except (ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path.name} cannot be read as {path.suffix[1:]}: {reason}") from None


def _json_lines(path: Path) -> list[dict[str, object]]:
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path.name}, line {number} is not JSON: {error.msg}") from None
        if not isinstance(row, dict):
            raise UserError(f"{path.name}, line {number} is not an object with text and emotion")
        found.append(row)
    return found


def _checked(name: str, number: int, text: object, emotion: object, role: object) -> _Row:
    if not isinstance(text, str) or not text.strip():
        raise UserError(
            f"{name}, row {number}: the text is {'empty' if isinstance(text, str) else f'not a string: {text!r}'}"
        )
    if not isinstance(emotion, str) or not re.fullmatch(r"[\w.\- ]*\w[\w.\- ]*", emotion):
        raise UserError(
            f"{name}, row {number}: emotion {emotion!r} is not a name of letters, digits, spaces, dots and hyphens"
        )
    if role in (None, "") or role != role:  # an absent role is NaN in parquet
        return text.strip(), emotion.strip(), None
    if role not in ("fit", "test"):
        raise UserError(f"{name}, row {number}: role {role!r} is neither fit nor test")
    return text.strip(), emotion.strip(), "fit" if role == "fit" else "test"

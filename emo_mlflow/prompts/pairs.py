"""Contrastive pairs: two texts that differ in the emotion, as people keep them: columns, multiple choice, or endings behind two personas."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emo_mlflow.common.files import check_there
from emo_mlflow.common.names import HALF, check_name, same_name, shown
from emo_mlflow.errors import UserError
from emo_mlflow.prompts.columns import Layout, Record
from emo_mlflow.prompts.delimited import read_text
from emo_mlflow.prompts.files import SUFFIXES, read_records
from emo_mlflow.types import NEGATIVE, Prompt

CHOICES = ("question", "answer_matching_behavior", "answer_not_matching_behavior")  # of CAA (Rimsky et al. 2024, arXiv:2312.06681)
PERSONA = "Act as if you are extremely {persona}. "


@dataclass(frozen=True)
class Pair:
    """Two texts that differ in an emotion: one has it."""

    emotion: str
    positive: str
    negative: str


def read_pairs(path: Path, personas: str, layout: Layout) -> list[Pair]:
    """The pairs of a file, in its order.

    A table (.csv, .tsv, .jsonl, .parquet) has the columns positive and negative, and perhaps emotion; where it has none, the file's name is
    the emotion's. A .json file is a list of such objects, or of multiple-choice items as CAA has them (question,
    answer_matching_behavior, answer_not_matching_behavior): the text is the question and the answer up to its letter. It may also be a list of
    endings, such as repeng's: each is put behind two personas.

    Args:
        personas: `POSITIVE/NEGATIVE`, such as `grateful/indifferent`, for a list of endings; else empty.

    Raises:
        UserError: if it cannot be read, or a pair lacks a side, or has two sides that are the same; the message names the row.
    """
    check_there(path, "pairs")
    if path.suffix.lower() == ".json":
        rows = list(_json_rows(path, personas, layout.encoding))
    elif path.suffix.lower() in SUFFIXES:
        if personas:
            raise UserError(f"personas={personas!r} is for a .json list of endings, and {path.name} is a table: leave it out")
        rows = read_records(path, layout.encoding)[0]
    else:
        raise UserError(f"pairs={str(path)!r} is no file that ends in .json, {', '.join(SUFFIXES)}")
    if not rows:
        raise UserError(f"{path.name} has no rows: give at least two pairs")
    pairs = [_pair(f"{path.name}, {place}", row, path.stem, layout.emotion_column or "emotion") for place, row in rows]
    return list(dict.fromkeys(pairs))


def _json_rows(path: Path, personas: str, encoding: str) -> Iterator[tuple[str, Record]]:
    try:
        found: Any = json.loads(read_text(path, encoding))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path.name} is not JSON: {shown(str(error))}") from None
    if not isinstance(found, list):
        raise UserError(f"{path.name} is no list: a .json file of pairs is a list of objects, or of endings")
    endings = all(isinstance(item, str) for item in found)
    if not endings and (among := [number for number, item in enumerate(found, start=1) if isinstance(item, str)]):
        raise UserError(f"{path.name}, item {among[0]} is a text among objects: give a list of endings, or of objects with positive and negative")
    if endings and found and not personas:
        raise UserError(f"{path.name} is a list of endings: say whose they are with personas=, such as personas='grateful/indifferent'")
    if personas and not endings:
        raise UserError(f"personas={personas!r} is for a list of endings, and {path.name} has objects: leave it out")
    sides = [side.strip() for side in personas.split("/")]
    if personas and (len(sides) != 2 or not all(sides)):
        raise UserError(f"personas={personas!r} is not two personas with a / between them, such as grateful/indifferent")
    for number, item in enumerate(found, start=1):
        place = f"item {number}"
        if isinstance(item, str):
            if not item.strip():
                raise UserError(f"{path.name}, {place} is an empty ending: take it out")
            yield place, {name: PERSONA.format(persona=side) + item for name, side in zip(("positive", "negative"), sides, strict=True)}
        elif not isinstance(item, dict):
            raise UserError(f"{path.name}, {place} is neither an object nor a text: {shown(item)}")
        elif set(CHOICES) <= set(item):
            texts = [item[name] for name in CHOICES]
            if not all(isinstance(text, str) for text in texts):
                raise UserError(f"{path.name}, {place}: {', '.join(CHOICES)} are not all texts")
            question, *answers = (text.strip() for text in texts)
            yield place, dict(zip(("positive", "negative"), (f"{question} {answer.rstrip(')')}" for answer in answers), strict=True))
        else:
            yield place, item


def _pair(place: str, row: Record, stem: str, emotion_column: str) -> Pair:
    sides = []
    for name in ("positive", "negative"):
        text = row.get(name)
        if name not in row:
            raise UserError(f"{place} has no column {name!r}: a pair has positive and negative")
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{place}: {name} is {'empty' if text is None or text == '' else shown(text)}: fill it in or remove the row")
        if HALF.search(text):
            raise UserError(f"{place}: {name} holds half a character (a lone surrogate): {shown(text)}")
        sides.append(text)
    if sides[0] == sides[1]:
        raise UserError(f"{place}: positive and negative are the same text: {shown(sides[0])}")
    named = row.get(emotion_column)
    emotion = check_name(named.strip() if isinstance(named, str) and named.strip() else stem, f"{place}: emotion")
    return Pair(emotion, *sides)


def prompts_of(pairs: Sequence[Pair], emotions: Sequence[str] | None, source: str) -> tuple[list[Prompt], tuple[str, ...], tuple[int, ...]]:
    """Texts to fit on, each emotion's positive ones and then its negative ones in the same order; the emotions; and groups of texts.

    Pairs that share a text have one group, so that none is judged by what was fitted on its other half. A text that more than half of an emotion's
    pairs share, such as one neutral text for all, joins no groups: it is the common measure.

    Raises:
        UserError: for an emotion that is not there, or has fewer than two pairs.
    """
    called: dict[str, str] = {}
    for pair in pairs:
        called.setdefault(same_name(pair.emotion), pair.emotion)
    if unknown := [name for name in emotions or () if same_name(name) not in called]:
        raise UserError(f"emotions: {source} has no pairs of {unknown[0]!r}; choose among {', '.join(called.values())}")
    wanted = tuple(dict.fromkeys(called[same_name(name)] for name in emotions)) if emotions else tuple(called.values())
    prompts: list[Prompt] = []
    groups: list[int] = []
    for emotion in wanted:
        own = [pair for pair in pairs if same_name(pair.emotion) == same_name(emotion)]
        if len(own) < 2:
            raise UserError(f"{source} has {len(own)} pair of {emotion!r}: at least 2 are needed")
        prompts += [Prompt(pair.positive, emotion, "fit") for pair in own]
        prompts += [Prompt(pair.negative, f"{emotion}{NEGATIVE}", "fit") for pair in own]
        groups += [*(found := _groups(own)), *found]
    return prompts, wanted, tuple(groups)


def _groups(pairs: Sequence[Pair]) -> list[int]:
    """A number for each pair, the same for pairs that share a text, directly or through others."""
    by_text: dict[str, list[int]] = {}
    for i, pair in enumerate(pairs):
        for text in (pair.positive, pair.negative):
            by_text.setdefault(text, []).append(i)
    group = list(range(len(pairs)))
    for sharing in by_text.values():
        if 1 < len(sharing) <= len(pairs) / 2:
            merged = {group[i] for i in sharing}
            group = [min(merged) if number in merged else number for number in group]
    return group

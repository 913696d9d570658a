"""The sweeps that a comparison reads: what each must have, what they must share, and what restricts the comparison."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from emo_mlflow.common.names import first_spellings, short_name
from emo_mlflow.errors import UserError
from emo_mlflow.scoring.targets import expected_sign
from emo_mlflow.settings.tables import PARAMETERS
from emo_mlflow.statistics.effects import KEYS, prompt_cube, sample_means
from emo_mlflow.statistics.intervals import LEAST
from emo_mlflow.statistics.moments import Floats
from emo_mlflow.sweeping.schemas import FLUENCY

FEW_PROMPTS = 20

# Settings whose difference between two sweeps makes a difference between their texts.
SETTINGS = (*sorted((name for name, item in PARAMETERS.items() if item.apart), key=lambda name: PARAMETERS[name].apart), "bands")


@dataclass(frozen=True)
class Note:
    """Something that restricts what a comparison can say; reports word it in their language by its code."""

    code: str
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Cells:
    """What a sweep's texts scored, per condition and prompt, samples averaged.

    Attributes:
        count: how many cells there are, and `failed` how many of them have no text.
        prompt_ids: in the order of the second axis.
        metrics: in the order of the third axis; the scorers' and FLUENCY's.
        before, after: float32 [conditions but the baseline, prompts, metrics]; NaN where a cell has no value.
    """

    count: int
    failed: int
    prompt_ids: tuple[str, ...]
    metrics: tuple[str, ...]
    before: Floats
    after: Floats

    @classmethod
    def of(cls, conditions: pd.DataFrame, completions: pd.DataFrame, scores: pd.DataFrame) -> Cells:
        """From a sweep's tables, which are ten times as large."""
        done = completions[completions["failure"].isna()]
        fluency = done.set_index(KEYS)[list(FLUENCY)].rename(columns=FLUENCY).astype(np.float32)
        values = scores.merge(fluency.reset_index(), on=KEYS, how="outer")
        metrics = [column for column in values.columns if column not in KEYS]
        values[metrics] = values[metrics].astype(np.float32)
        cube = prompt_cube(values, conditions["condition_id"], metrics)
        is_baseline = conditions["kind"].to_numpy() == "baseline"
        before, after = (part.astype(np.float32, copy=False) for part in sample_means(cube[is_baseline], cube[~is_baseline]))
        prompt_ids = tuple(pd.factorize(values["prompt_id"], sort=False)[1])
        return cls(len(completions), len(completions) - len(done), prompt_ids, tuple(metrics), np.broadcast_to(before, after.shape), after)


@dataclass(frozen=True, eq=False)
class Source:
    """One finished sweep, as a comparison reads it.

    Attributes:
        label: how tables and figures call it; the model's name where that is unique.
        config: the sweep's settings.
        facts: what the sweep found: n_layers, fingerprints, the reference emotion.
        prompts, conditions: the sweep's tables of these names.
        tables: reads its completions and scores, which nothing keeps: many large sweeps fit the memory.
        texts: condition_id, prompt_id and completion of the finished cells of some conditions, read when they are asked for.
        seconds: how long the run took; NaN if unknown.
    """

    run_id: str
    label: str
    config: Mapping[str, Any]
    facts: Mapping[str, Any]
    prompts: pd.DataFrame
    conditions: pd.DataFrame
    tables: Callable[[], tuple[pd.DataFrame, pd.DataFrame]]
    texts: Callable[[Sequence[str]], pd.DataFrame]
    seconds: float = float("nan")

    @cached_property
    def cells(self) -> Cells:
        """What its texts scored."""
        return Cells.of(self.conditions, *self.tables())

    @property
    def phase(self) -> str:
        """`residual` for a sweep of directions, `head` for one over heads."""
        return "residual" if self.conditions["head"].isna().all() else "head"

    def signs(self, conditions: pd.DataFrame) -> npt.NDArray[np.int64]:
        """Which way each condition is expected to move its emotion's own label: 1 or -1."""
        alphas = conditions["alpha"].astype(float).fillna(1.0)
        return np.array([expected_sign(self.config["operation"], alpha) for alpha in alphas], np.int64)

    @property
    def n_layers(self) -> int:
        """Decoder blocks of the model."""
        return int(self.facts["n_layers"])

    def depth(self, layer: pd.Series) -> pd.Series:
        """Relative depth of the place where a layer's intervention acts: 0 before the first block, 1 after the last."""
        return (layer.astype(float) + (self.config["site"] == "resid_post")) / self.n_layers


def check(sources: Sequence[Source]) -> tuple[tuple[Source, ...], tuple[Note, ...]]:
    """Refuses what cannot be compared, names the sweeps apart, and says what restricts the comparison.

    Raises:
        UserError: for no sweep, a sweep given twice, fewer than two prompts, no condition but the baseline, other
            scorers than the rest, or no shared prompts.
    """
    if not sources:
        raise UserError("there is no sweep to compare: give runs=ID,ID or an experiment that has finished sweeps")
    for run_id, count in Counter(source.run_id for source in sources).items():
        if count > 1:
            raise UserError(f"run {run_id} is given {count} times: give each sweep once")
    for source in sources:
        _check_one(source)
    first, *others = sources
    for other in others:
        _check_pair(first, other)
    named = _spelled_alike(_labelled(sources))
    return named, _notes(named)


def _spelled_alike(sources: Sequence[Source]) -> tuple[Source, ...]:
    """The sweeps with emotions as the first of them spells each: `Joy` of one and `joy` of another are one."""
    spelling = first_spellings(
        name for source in sources for table in (source.conditions, source.prompts) for name in table["emotion"].dropna().unique()
    )

    def spelled(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(emotion=table["emotion"].map(spelling, na_action="ignore"))

    return tuple(replace(source, conditions=spelled(source.conditions), prompts=spelled(source.prompts)) for source in sources)


def _check_one(source: Source) -> None:
    n_prompts = source.prompts["prompt_id"].nunique()
    if n_prompts < 2:
        raise UserError(
            f"run {source.run_id} has {n_prompts} prompt: statistics over prompts need at least 2 (max_samples=)"
        )
    if not (source.conditions["kind"] == "emotion").any():
        raise UserError(
            f"run {source.run_id} has no condition with a direction: there is nothing to compare with its baseline"
        )
    if (source.conditions["kind"] == "baseline").sum() != 1:
        raise UserError(f"run {source.run_id} does not have exactly one baseline: its conditions.parquet is damaged")


def _check_pair(first: Source, other: Source) -> None:
    pair = f"runs {first.run_id} and {other.run_id}"
    if first.phase != other.phase:
        raise UserError(f"{pair}: one is a sweep of directions and one a sweep over heads; compare each kind by itself")
    ours, theirs = (dict(source.facts["scorer_fingerprints"]) for source in (first, other))
    if ours != theirs:
        names = [", ".join(f"{name} ({mark[:8]})" for name, mark in sorted(marks.items())) for marks in (ours, theirs)]
        raise UserError(
            f"{pair} were scored by different scorers, {names[0]} and {names[1]}: repeat one with scorers= of the other"
        )
    if first.config["score_prompt"] != other.config["score_prompt"]:
        raise UserError(f"{pair} differ in score_prompt: one scored the prompt too; repeat one of them")
    if not set(first.prompts["prompt_id"]) & set(other.prompts["prompt_id"]):
        raise UserError(f"{pair} share no prompts: compare sweeps of one dataset with the same seed")


def _labelled(sources: Sequence[Source]) -> tuple[Source, ...]:
    """Names the sweeps by model; sweeps of one model by what sets them apart, or else by run."""
    models = [short_name(str(source.config["model"])) for source in sources]
    named = []
    for source, model in zip(sources, models, strict=True):
        rivals = [other for other, name in zip(sources, models, strict=True) if name == model]
        apart = [name for name in SETTINGS if len({_text(rival.config[name]) for rival in rivals}) > 1]
        suffix = ", ".join(f"{name} {_text(source.config[name])}" for name in apart[:2])
        label = model if len(rivals) == 1 else f"{model} ({suffix or source.run_id[:8]})"
        named.append(replace(source, label=label))
    counts = Counter(source.label for source in named)
    return tuple(s if counts[s.label] == 1 else replace(s, label=f"{s.label} [{s.run_id[:8]}]") for s in named)


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _notes(sources: Sequence[Source]) -> tuple[Note, ...]:
    notes = []
    sets = [frozenset(source.prompts["prompt_id"]) for source in sources]
    if len(set(sets)) > 1:
        shared = len(frozenset.intersection(*sets))
        notes.append(
            Note(
                "prompts_differ",
                {
                    "shared": shared,
                    "counts": ", ".join(f"{s.label}: {len(p)}" for s, p in zip(sources, sets, strict=True)),
                },
            )
        )
    for name in SETTINGS:
        if len({_text(source.config[name]) for source in sources}) > 1:
            values = ", ".join(f"{source.label}: {_text(source.config[name])}" for source in sources)
            notes.append(Note("settings_differ", {"name": name, "values": values}))
    models = {source.facts["model_fingerprint"] for source in sources}
    if len(models) > 1 and {(source.phase, source.config["alpha_unit"]) for source in sources} == {("residual", "vector")}:
        notes.append(Note("alpha_in_vectors"))
    for source in sources:
        notes += _own_notes(source)
    return tuple(notes)


def _own_notes(source: Source) -> list[Note]:
    notes = []
    if source.cells.failed:
        notes.append(Note("failed_cells", {"label": source.label, "failed": source.cells.failed, "cells": source.cells.count}))
    if source.conditions["draw"].nunique() == 0:
        notes.append(Note("no_random", {"label": source.label}))
    n_prompts = source.prompts["prompt_id"].nunique()
    if n_prompts < LEAST:
        notes.append(Note("no_intervals", {"label": source.label, "n": n_prompts, "least": LEAST}))
    elif n_prompts < FEW_PROMPTS:
        notes.append(Note("few_prompts", {"label": source.label, "n": n_prompts}))
    return notes

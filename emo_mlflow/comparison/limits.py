"""What a comparison's prompts and random directions are too few for."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import pandas as pd

from emo_mlflow.comparison.designs import flips_needed
from emo_mlflow.comparison.families import OWN, ROUNDING, SIGNIFICANT
from emo_mlflow.comparison.sources import Note, Source
from emo_mlflow.statistics.signs import smallest_flip_p


def limits(
    sources: Sequence[Source], effects: pd.DataFrame, specific: pd.DataFrame, cases: pd.DataFrame
) -> tuple[Note, ...]:
    """Notes on tests that cannot be significant, whatever the data were: a p-value has a least, and a correction multiplies it.

    Args:
        effects, specific, cases: what `effect_sizes`, `specificity` and `recommendations` give.
    """
    notes = []
    for source in sources:
        tables = [table[table["model"] == source.label] for table in (effects, specific, cases)]
        notes += _of_prompts(source, tables[0]) + _of_draws(source, tables[1], tables[2])
    return tuple(notes)


def _of_prompts(source: Source, effects: pd.DataFrame) -> list[Note]:
    own = effects[effects[OWN]]
    if not len(own):
        return []
    n, tests = int(own["n"].max()), max(1, int(own["family_size"].max()))
    smallest, needed = smallest_flip_p(n), flips_needed(SIGNIFICANT / tests)
    values = {"label": source.label, "n": n, "smallest_p": smallest, "tests": tests, "needed": needed}
    return [Note("few_flips", values)] if n < needed else []


def _of_draws(source: Source, specific: pd.DataFrame, cases: pd.DataFrame) -> list[Note]:
    own, tested = specific[specific[OWN]], cases[cases["p_specific"].notna()]
    draws = int(source.conditions["draw"].nunique())
    if not draws or not len(own):
        return []
    notes = []
    if len(tested):
        count, searchers = int(tested["cases"].max()), int(tested["searchers"].max())
        needed = draws_needed(count, searchers)
        smallest = min(1.0, count * searchers / (searchers + draws))
        values = {"label": source.label, "draws": draws, "cases": count, "searchers": searchers, "needed": needed}
        if draws < needed:
            notes.append(Note("few_random", {**values, "smallest_p": smallest}))
    tests = int(own["family_size"].max())
    if draws < draws_needed(tests):
        each = {"label": source.label, "draws": draws, "tests": tests, "needed": draws_needed(tests)}
        notes.append(Note("few_random_each", each))
    return notes


def draws_needed(tests: int, searchers: int = 1) -> int:
    """The fewest random directions by which one of so many tests can be significant after Holm's or Bonferroni's correction."""
    return ceil(searchers * (tests / SIGNIFICANT - 1) * (1 - ROUNDING))

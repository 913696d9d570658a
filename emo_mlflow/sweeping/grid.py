"""The cells of a sweep: conditions x prompts x samples."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, singledispatch

import numpy as np
import pandas as pd
import pyarrow as pa

from emo_mlflow.directions.controls import random_control
from emo_mlflow.settings.sweep import SweepConfig
from emo_mlflow.statistics.moments import Integers
from emo_mlflow.steering.edits import HeadPatch, Intervention, Patch, at_dose, make_patch
from emo_mlflow.steering.packing import Row
from emo_mlflow.sweeping.swept import Swept, SweptDirections, SweptHeads
from emo_mlflow.types import FEW_DRAWS, Cell, Condition, Fit, Tokens, digest


@dataclass(frozen=True, eq=False)
class Grid:
    """What the cells of a sweep are, without the model: small enough to send to every machine.

    Attributes:
        tokens: by prompt id, the document-start token included.
        own: by emotion, the prompts that its conditions continue; None where all conditions continue all prompts.
        fronted: by condition that puts something in front of prompts, the tokens by prompt id then.
    """

    config: SweepConfig
    swept: Swept
    conditions: tuple[Condition, ...]
    tokens: Mapping[str, Tokens]
    own: Mapping[str, Sequence[str]] | None = field(default=None, kw_only=True)
    fronted: Mapping[str, Mapping[str, Tokens]] = field(default_factory=dict, kw_only=True)

    @cached_property
    def n_cells(self) -> int:
        """Conditions x their prompts x samples."""
        return sum(len(self._prompts_of(condition)) for condition in self.conditions) * self.config.samples_per_prompt

    def _prompts_of(self, condition: Condition) -> Collection[str]:
        return self.tokens if self.own is None or condition.emotion is None else self.own[condition.emotion]

    def cells(self) -> Iterator[Cell]:
        """All cells, by condition, prompt and sample."""
        for condition in self.conditions:
            for prompt_id in self._prompts_of(condition):
                for sample in range(self.config.samples_per_prompt):
                    yield Cell(condition.condition_id, prompt_id, sample)

    @cached_property
    def n_per_condition(self) -> int:
        """Cells of a condition that continues all prompts: what `positions` counts with."""
        return len(self.tokens) * self.config.samples_per_prompt

    def positions(self, cells: pa.Table) -> Integers:
        """Where cells stand when they are listed by condition, prompt and sample; all of a condition's before all of the next."""
        conditions, prompts = (index.get_indexer(cells[index.name].to_pandas()) for index in self._indexes)
        prompt = conditions.astype(np.int64) * len(self.tokens) + prompts
        return prompt * self.config.samples_per_prompt + cells["sample"].to_numpy()

    @cached_property
    def _indexes(self) -> tuple[pd.Index, pd.Index]:
        ids = pd.Index([condition.condition_id for condition in self.conditions], name="condition_id")
        return ids, pd.Index(list(self.tokens), name="prompt_id")

    def row(self, cell: Cell) -> Row:
        """A cell made ready for the engine."""
        noise = noise_seed(self.config.seed, cell.prompt_id, cell.sample)
        with_nll = self.has_likelihood(self._by_id[cell.condition_id])
        prompt = self.tokens[cell.prompt_id]
        if cell.condition_id in self.fronted:
            return Row(cell, self.fronted[cell.condition_id][cell.prompt_id], None, noise, with_nll, likely_after=prompt)
        return Row(cell, prompt, self._patch(cell.condition_id), noise, with_nll)

    def has_likelihood(self, condition: Condition) -> bool:
        """Whether a condition's texts get their likelihood under the unpatched model."""
        asked = self.config.likelihoods
        return asked == "all" or (asked == "few" and (condition.draw is None or condition.draw < FEW_DRAWS))

    @cached_property
    def _by_id(self) -> dict[str, Condition]:
        return {condition.condition_id: condition for condition in self.conditions}

    @cached_property
    def _patches(self) -> dict[str, Intervention | None]:
        return {}

    def _patch(self, condition_id: str) -> Intervention | None:
        if condition_id not in self._patches:
            condition = self._by_id[condition_id]
            self._patches[condition_id] = intervention(self.swept, condition, self.config) if condition.steers else None
        return self._patches[condition_id]


def direction_patch(fit: Fit, condition: Condition, n_steps: int) -> Patch:
    """What a condition of directions, or of random controls for them, does: its edits, those of lower layers first."""
    alone = [
        replace(condition, emotion=edit.emotion, layer=edit.layer, alpha=edit.weight * float(condition.alpha or 0), edits="")
        for edit in condition.every_edit
    ]
    first, *then = sorted((_edit(fit, each, n_steps) for each in alone), key=lambda patch: patch.boundary)
    return replace(first, then=tuple(then))


def _edit(fit: Fit, condition: Condition, n_steps: int) -> Patch:
    emotion, layer = condition.place
    direction = fit.directions[emotion]
    vector, basis = direction.vectors[layer], None if direction.basis is None else direction.basis[layer]
    if condition.draw is not None and condition.seed is not None:
        vector, basis = random_control(vector, basis, seed=condition.seed, emotion=emotion, layer=layer, draw=condition.draw)
    return make_patch(condition, vector, basis, float(fit.residual_norms[layer]), n_steps)


@singledispatch
def intervention(swept: Swept, condition: Condition, config: SweepConfig) -> Intervention:
    """A condition other than the baseline, made ready for the engine."""
    raise NotImplementedError(type(swept).__name__)


@intervention.register
def _(swept: SweptDirections, condition: Condition, config: SweepConfig) -> Intervention:
    if condition.alpha_unit == "kl":
        condition = at_dose(condition, swept.doses[condition.condition_id])
    return direction_patch(swept.fit, condition, config.sequence_length)


@intervention.register
def _(swept: SweptHeads, condition: Condition, config: SweepConfig) -> Intervention:
    (emotion, layer), head = condition.place, int(condition.head or 0)
    return HeadPatch(layer, condition.scope, condition.patch_window, head, swept.replacements[emotion][layer, head])


def noise_seed(seed: int, prompt_id: str, sample: int) -> int:
    """What a cell's sampling noise is drawn from: the condition is not in it, so that conditions are paired."""
    return int(digest([seed, prompt_id, sample]), 16)

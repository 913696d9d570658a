"""The cells of a sweep: conditions x prompts x samples."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from emo_mlflow.directions.controls import random_control
from emo_mlflow.directions.fitting import Fit
from emo_mlflow.settings.sweep import SweepConfig
from emo_mlflow.steering.edits import HeadPatch, Intervention, make_patch
from emo_mlflow.steering.packing import Row
from emo_mlflow.sweep.results import HeadScreen
from emo_mlflow.types import Cell, Condition, Tokens, digest


@dataclass(frozen=True, eq=False)
class Grid:
    """What the cells of a sweep are, without the model: small enough to send to every machine.

    Attributes:
        config: with layers and emotions resolved.
        tokens: by prompt id, the document-start token included.
        screen: of a sweep over heads.
        own: by emotion, the prompts that its conditions continue; None where all conditions continue all prompts.
    """

    config: SweepConfig
    fit: Fit
    conditions: tuple[Condition, ...]
    tokens: Mapping[str, Tokens]
    screen: HeadScreen | None = field(default=None, kw_only=True)
    own: Mapping[str, Sequence[str]] | None = field(default=None, kw_only=True)

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

    def row(self, cell: Cell) -> Row:
        """A cell made ready for the engine."""
        noise = noise_seed(self.config.seed, cell.prompt_id, cell.sample)
        return Row(cell, self.tokens[cell.prompt_id], self._patch(cell.condition_id), noise)

    @cached_property
    def _by_id(self) -> dict[str, Condition]:
        return {condition.condition_id: condition for condition in self.conditions}

    @cached_property
    def _patches(self) -> dict[str, Intervention | None]:
        return {}

    def _patch(self, condition_id: str) -> Intervention | None:
        if condition_id not in self._patches:
            self._patches[condition_id] = self._make_patch(self._by_id[condition_id])
        return self._patches[condition_id]

    def _make_patch(self, condition: Condition) -> Intervention | None:
        if condition.kind == "baseline":
            return None
        emotion, layer = condition.emotion, condition.layer
        assert emotion is not None and layer is not None
        if condition.head is not None:
            assert self.screen is not None
            replacement = self.screen.replacements[emotion][layer, condition.head]
            return HeadPatch(layer, condition.scope, condition.patch_window, condition.head, replacement)
        direction = self.fit.directions[emotion]
        vector, basis = direction.vectors[layer], None if direction.basis is None else direction.basis[layer]
        if condition.draw is not None:
            vector, basis = random_control(
                vector, basis, seed=self.config.seed, emotion=emotion, layer=layer, draw=condition.draw
            )
        norm = float(self.fit.residual_norms[layer])
        return make_patch(condition, vector, basis, norm, self.config.sequence_length)


def noise_seed(seed: int, prompt_id: str, sample: int) -> int:
    """What a cell's sampling noise is drawn from: the condition is not in it, so that conditions are paired."""
    return int(digest([seed, prompt_id, sample]), 16)

"""A sweep laid out: settings to inputs, inputs to a plan of every cell."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import torch

from emo_mlflow.common.machine import pick_device
from emo_mlflow.directions.files import check_directions, load_directions, norms_from_metadata
from emo_mlflow.directions.fitting import Fit, fit_directions, text_means
from emo_mlflow.errors import UserError
from emo_mlflow.models.blocks import BlockStack
from emo_mlflow.models.loading import LoadedModel, check, load
from emo_mlflow.models.names import ModelSpec, resolve
from emo_mlflow.models.tokens import encode
from emo_mlflow.prompts.selection import PromptSet, emotions_to_continue, load_prompts
from emo_mlflow.scoring.loading import load_scorers
from emo_mlflow.scoring.protocol import Scorers
from emo_mlflow.settings.layers import resolve_layers
from emo_mlflow.settings.sweep import SweepConfig
from emo_mlflow.steering.engine import Engine
from emo_mlflow.steering.operations import HEAD_REPLACEMENTS
from emo_mlflow.sweep.grid import Grid
from emo_mlflow.sweep.stages import (
    Scoring,
    cell_batch,
    make_engine,
)
from emo_mlflow.types import Cell, Condition, Prompt, Tokens

MOST_CONDITIONS = 1_000_000  # a gigabyte of them


@dataclass(frozen=True, eq=False)
class Inputs:
    """Everything that a sweep reads, checked, before anything expensive is done."""

    config: SweepConfig
    prompts: PromptSet
    scorers: Scorers
    spec: ModelSpec
    device: torch.device
    directions_file: Path | None


def prepare(config: SweepConfig, directions_file: Path | None = None) -> Inputs:
    """Reads and checks the data set, the scorers, the device and the model's name.

    Args:
        directions_file: a safetensors file to take directions from, instead of fitting them.

    Raises:
        UserError: for anything that the user can mend.
    """
    device = pick_device(config.device)
    spec = resolve(config.model)
    named = config.emotions if directions_file is None else None
    prompts = load_prompts(config.dataset, emotions=named, max_samples=config.max_samples, seed=config.seed)
    if directions_file is not None:
        known = tuple(load_directions(directions_file)[0])
        config = replace(config, emotions=config.emotions or known)
    else:
        config = replace(config, emotions=prompts.emotions)
    head = HEAD_REPLACEMENTS.get(config.operation)
    if head is not None and head.continues_own_texts:
        prompts = emotions_to_continue(prompts, config.max_samples, config.seed)
    scorers = load_scorers(config.scorers)
    check(spec, device, getattr(torch, config.dtype))
    return Inputs(config, prompts, scorers, spec, device, directions_file)


@dataclass(frozen=True, eq=False)
class Plan(Grid):
    """A sweep laid out: the model is loaded, the directions are known, every cell can be named."""

    inputs: Inputs
    loaded: LoadedModel
    stack: BlockStack

    @property
    def grid(self) -> Grid:
        """What other machines need of it."""
        return Grid(self.config, self.fit, self.conditions, self.tokens, screen=self.screen, own=self.own)

    @cached_property
    def engine(self) -> Engine:
        """The engine, set up for these settings."""
        return make_engine(self.config, self.loaded, self.stack)

    def packs(self, done: set[Cell]) -> list[pa.Table]:
        """The cells that are not done, in batches for `Generation`.

        Packs are cut from all cells: what a row is computed beside changes the last bits of its numbers.
        """
        packs = self.engine.packs([self.row(cell) for cell in self.cells()])
        left = ([row.cell for row in pack if row.cell not in done] for pack in packs)
        return [cell_batch(cells) for cells in left if cells]

    def scoring(self) -> Scoring:
        """The stage after generation."""
        prompts = {prompt.prompt_id: prompt.text for prompt in self.inputs.prompts.test}
        return Scoring(self.inputs.scorers, prompts, self.config.score_prompt)


def make_conditions(config: SweepConfig) -> tuple[Condition, ...]:
    """The baseline, then each emotion's conditions, each followed by its random controls. Layers and emotions must be resolved.

    Raises:
        UserError: for more than can be listed.
    """
    assert config.emotions is not None and not isinstance(config.layers, str)
    windows: tuple[int | None, ...] = config.patch_window if config.scope == "window" else (None,)
    settings = len(config.emotions) * len(windows) * len(config.alphas) * len(config.layers)
    if (count := 1 + settings * (1 + config.num_random)) > MOST_CONDITIONS:
        raise UserError(f"{count} conditions are more than a sweep holds ({MOST_CONDITIONS}): take fewer layers, alphas or num_random")
    found = [Condition("baseline")]
    for emotion, window, alpha, layer in itertools.product(config.emotions, windows, config.alphas, config.layers):
        condition = Condition(
            kind="emotion",
            emotion=emotion,
            layer=layer,
            alpha=alpha,
            scope=config.scope,
            patch_window=window,
            site=config.site,
            operation=config.operation,
            alpha_unit=config.alpha_unit,
            alpha_schedule=config.alpha_schedule,
        )
        found.append(condition)
        found += [replace(condition, kind="random", draw=draw, seed=config.seed) for draw in range(config.num_random)]
    return tuple(found)


def make_plan(inputs: Inputs) -> Plan:
    """Loads the model, checks what only it can tell, and fits or reads the directions.

    Raises:
        UserError: for a layer that the model does not have, a prompt that does not fit, or directions of another model.
    """
    config = inputs.config
    loaded = load(inputs.spec, inputs.device, getattr(torch, config.dtype))
    config = replace(config, layers=resolve_layers(config.layers, loaded.n_layers))
    tokens = encode_prompts(loaded, inputs.prompts.test, config)
    stack = BlockStack(loaded.model)
    fit = _directions(inputs, config, loaded, stack)
    return Plan(config, fit, make_conditions(config), tokens, inputs, loaded, stack)


def encode_prompts(loaded: LoadedModel, prompts: Sequence[Prompt], config: SweepConfig) -> dict[str, Tokens]:
    """Token ids of the prompts to continue, by prompt_id.

    Raises:
        UserError: for a prompt without tokens, or one that does not fit the model's context with what is to be written.
    """
    found = dict(
        zip(
            [prompt.prompt_id for prompt in prompts],
            encode(loaded, [prompt.text for prompt in prompts], config.prepend_bos),
            strict=True,
        )
    )
    new, context = config.sequence_length, loaded.context
    for prompt in prompts:
        length = len(found[prompt.prompt_id])
        if length == 0:
            raise UserError(f"the prompt {prompt.text!r} has no tokens: remove it, or run with prepend_bos=true")
        if length + new > context:
            raise UserError(
                f"the prompt {prompt.text[:40]!r} has {length} tokens; with {new} new ones it does not fit the model's context of {context}: "
                "shorten it or sequence_length"
            )
    return found


def _directions(inputs: Inputs, config: SweepConfig, loaded: LoadedModel, stack: BlockStack) -> Fit:
    """Directions and residual norms at the sweep's site, fitted on the data set or read from a file."""
    fit_prompts = inputs.prompts.fit
    tokens = encode(loaded, [prompt.text for prompt in fit_prompts], config.prepend_bos)
    if inputs.directions_file is None:
        return fit_directions(stack, fit_prompts, tokens, config.site, inputs.prompts.reference, config.direction)
    directions, metadata = load_directions(inputs.directions_file)
    assert config.emotions is not None
    shape = (loaded.n_layers, loaded.d_model)
    check_directions(
        directions, metadata, emotions=config.emotions, site=config.site, shape=shape, fingerprint=loaded.fingerprint
    )
    norms = norms_from_metadata(metadata, loaded.n_layers)
    if norms is None:
        norms = text_means(stack, tokens, config.site)[1].mean(axis=0)
    return Fit({name: directions[name] for name in config.emotions}, norms)

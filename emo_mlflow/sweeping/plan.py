"""A sweep laid out: settings to inputs, inputs to a plan of every cell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

import pyarrow as pa
import torch

from emo_mlflow.common.machine import pick_device
from emo_mlflow.common.names import same_name
from emo_mlflow.directions.files import load_directions
from emo_mlflow.errors import UserError
from emo_mlflow.models.blocks import BlockStack
from emo_mlflow.models.chat import resolved_form
from emo_mlflow.models.loading import LoadedModel, check, load
from emo_mlflow.models.names import ModelSpec, resolve
from emo_mlflow.models.tokens import encode_fit_texts, encode_prompts
from emo_mlflow.prompts.columns import Layout
from emo_mlflow.prompts.selection import PromptSet, emotions_to_continue, load_prompts
from emo_mlflow.scoring.loading import load_scorers
from emo_mlflow.scoring.protocol import Scorers
from emo_mlflow.settings.combinations import combinations
from emo_mlflow.settings.sweep import HeadConfig, SweepConfig, SweepSettings
from emo_mlflow.settings.templates import form_of
from emo_mlflow.statistics.moments import Mask
from emo_mlflow.steering.engine import Engine
from emo_mlflow.steering.operations import HEAD_REPLACEMENTS
from emo_mlflow.sweeping.asking import asked, asking_conditions
from emo_mlflow.sweeping.budgets import check_budgets
from emo_mlflow.sweeping.directions import over_directions
from emo_mlflow.sweeping.grid import Grid
from emo_mlflow.sweeping.heads import over_heads
from emo_mlflow.sweeping.stages import Scoring, cell_batch, make_engine
from emo_mlflow.sweeping.swept import Swept
from emo_mlflow.types import Condition, Prompt, Tokens

TURN = 2**17  # cells that packs are cut from at a time


@dataclass(frozen=True, eq=False)
class Inputs:
    """Everything that a sweep reads, checked, before anything expensive is done.

    Attributes:
        emotions: those that are injected.
        directions_file: where directions are taken from, instead of being fitted.
        asking: conditions that ask for an emotion instead of steering.
    """

    settings: SweepSettings
    emotions: tuple[str, ...]
    prompts: PromptSet
    scorers: Scorers
    spec: ModelSpec
    device: torch.device
    directions_file: Path | None
    asking: tuple[Condition, ...] = ()


def prepare(settings: SweepSettings, directions_file: Path | None = None) -> Inputs:
    """Reads and checks the data set, the scorers, the device and the model's name.

    Args:
        directions_file: a safetensors file to take directions from, instead of fitting them.

    Raises:
        UserError: for anything that the user can mend.
    """
    device = pick_device(settings.device)
    spec = resolve(settings.model)
    named = settings.emotions if directions_file is None else None
    prompts = load_prompts(
        settings.dataset,
        emotions=named,
        max_samples=settings.max_samples,
        seed=settings.seed,
        layout=Layout.of(settings),
        pairs=settings.pairs,
        personas=settings.personas,
    )
    emotions = prompts.emotions
    if directions_file is not None:
        known = {same_name(name): name for name in load_directions(directions_file)[0]}
        emotions = tuple(known.get(same_name(name), name) for name in settings.emotions or known.values())
    if _continues_own_texts(settings.operation):
        prompts = emotions_to_continue(prompts, settings.max_samples, settings.seed)
    combinations(settings.combine, emotions)
    check_budgets(settings.alpha_unit, settings.operation)
    scorers = load_scorers(settings.scorers, max_calls=settings.judge_max_calls)
    check(spec, device, getattr(torch, settings.dtype))
    form = resolved_form(spec, settings, (*prompts.fit, *prompts.test))
    settings = replace(settings, template=form.template, fit_on=form.fit_on)
    asking = asking_conditions(settings, emotions, prompts)
    return Inputs(settings, emotions, prompts, scorers, spec, device, directions_file, asking)


def _continues_own_texts(operation: str) -> bool:
    """Whether each emotion's own texts are continued, instead of one set of neutral ones for all."""
    head = HEAD_REPLACEMENTS.get(operation)
    return head is not None and head.continues_own_texts


@dataclass(frozen=True, eq=False)
class Plan(Grid):
    """A sweep laid out: the model is loaded, what is swept is known, every cell can be named."""

    inputs: Inputs
    loaded: LoadedModel
    stack: BlockStack

    @property
    def grid(self) -> Grid:
        """What other machines need of it."""
        return Grid(self.config, self.swept, self.conditions, self.tokens, own=self.own, fronted=self.fronted)

    @cached_property
    def engine(self) -> Engine:
        """The engine, set up for these settings."""
        return make_engine(self.config, self.loaded, self.stack)

    def packs(self, is_done: Callable[[pa.Table], Mask]) -> Iterator[pa.Table]:
        """The cells that are not done, in batches for `Generation`.

        Packs are cut from all cells: what a row is computed beside changes the last bits of its numbers. Of very many cells they are cut
        in turns, so that they need not be in memory at once.
        """
        cells = self.cells()
        while turn := list(islice(cells, TURN)):
            self._patches.clear()  # of earlier turns
            for pack in self.engine.packs([self.row(cell) for cell in turn]):
                batch = cell_batch([row.cell for row in pack])
                left = batch.filter(pa.array(~is_done(batch)))
                if len(left):
                    yield left

    def scoring(self) -> Scoring:
        """The stage after generation."""
        prompts = {prompt.prompt_id: prompt.text for prompt in self.inputs.prompts.test}
        return Scoring(self.inputs.scorers, prompts, self.config.score_prompt)


def make_plan(inputs: Inputs) -> Plan:
    """Loads the model, checks what only it can tell, and lays out the sweep over directions or heads.

    Raises:
        UserError: for a layer that the model does not have, a prompt that does not fit, directions of another model, or heads that
            cannot be ranked where ranks are asked for.
    """
    prompts = inputs.prompts
    loaded = load(inputs.spec, inputs.device, getattr(torch, inputs.settings.dtype))
    stack = BlockStack(loaded.model)
    config = inputs.settings.resolved(inputs.emotions, loaded.n_layers)
    tokens = tokens_by_prompt(loaded, prompts.test, config)
    fronted = {condition.condition_id: tokens_by_prompt(loaded, prompts.test, config, condition.front) for condition in inputs.asking}
    stack.check_lengths({len(ids) for found in (tokens, *fronted.values()) for ids in found.values()}, config.sequence_length)
    texts = encode_fit_texts(loaded, prompts.fit, form_of(config))
    swept: Swept
    conditions: tuple[Condition, ...]
    if isinstance(config, HeadConfig):
        swept, conditions = over_heads(prompts, config, stack, texts)
    else:
        swept, conditions = over_directions(prompts, config, loaded, stack, texts, inputs.directions_file)
    own = None
    if _continues_own_texts(config.operation):
        own = {name: [p.prompt_id for p in prompts.test if p.emotion == name] for name in prompts.emotions}
    return Plan(config, swept, (*conditions, *inputs.asking), tokens, inputs, loaded, stack, own=own, fronted=fronted)


def tokens_by_prompt(loaded: LoadedModel, prompts: Sequence[Prompt], config: SweepConfig, front: str = "") -> dict[str, Tokens]:
    """Token ids of the prompts to continue, by prompt_id.

    Args:
        front: what stands in front of each.

    Raises:
        UserError: for a prompt without tokens, or one that does not fit the model's context with what is to be written.
    """
    whole, form = asked(loaded, prompts, form_of(config), front) if front else (prompts, form_of(config))
    tokens = encode_prompts(loaded, whole, form)
    found = dict(zip([prompt.prompt_id for prompt in prompts], tokens, strict=True))
    new, context = config.sequence_length, loaded.context
    for prompt in prompts:
        length = len(found[prompt.prompt_id])
        if length == 0:
            raise UserError(f"the prompt {prompt.text!r} has no tokens: remove it, or run with prepend_bos=true")
        if length + new > context:
            behind = f" behind {front[:40]!r}" if front else ""
            raise UserError(
                f"the prompt {prompt.text[:40]!r}{behind} has {length} tokens; with {new} new ones it does not fit the model's context of {context}: "
                "shorten it or sequence_length"
            )
    return found

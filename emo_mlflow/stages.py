"""The stages of a sweep: callables from a batch of columns to a batch of columns, the same in one process and on many machines.

Cells -> completions (`Generation`) -> scores (`Scoring`). A batch is an Arrow table with a row per cell, so that it crosses machines as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from emo_mlflow.decoding import Decoding
from emo_mlflow.directions import Fit, random_control
from emo_mlflow.generation import Engine
from emo_mlflow.layers import BlockStack
from emo_mlflow.models import LoadedModel
from emo_mlflow.packing import Row, Tokens
from emo_mlflow.results import HeadScreen
from emo_mlflow.scorers import Scorers
from emo_mlflow.steering import HeadPatch, Intervention, make_patch
from emo_mlflow.types import Cell, Completion, Condition, SweepConfig, digest

CELL = pa.schema([("condition_id", pa.string()), ("prompt_id", pa.string()), ("sample", pa.int64())])
COMPLETION = pa.schema(
    [
        *CELL,
        ("completion", pa.string()),
        ("n_tokens", pa.int64()),
        ("nll", pa.float64()),
        ("distinct_2", pa.float64()),
        ("n_patched", pa.int64()),
        ("failure", pa.string()),
    ]
)
RESULTS = [item.name for item in fields(Completion) if item.name != "cell"]


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


def text_decoder(loaded: LoadedModel) -> Callable[[list[list[int]]], list[str]]:
    """Token ids of new tokens to texts, without special tokens."""

    def decode(batch: list[list[int]]) -> list[str]:
        texts = loaded.tokenizer.batch_decode(batch, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return list(texts)

    return decode


def make_engine(config: SweepConfig, loaded: LoadedModel, stack: BlockStack) -> Engine:
    """The engine, set up for a sweep's settings."""
    decoding = Decoding(config.sequence_length, config.min_new_tokens, config.temperature, loaded.eos_ids)
    return Engine(stack, decoding, text_decoder(loaded), config.batch_size)


def probe_logits(loaded: LoadedModel, tokens: Tokens) -> torch.Tensor:
    """The unhooked model's logits on a prompt: equal before and after a sweep if nothing was left behind."""
    batch = torch.tensor([tokens], device=loaded.model.device)
    with torch.inference_mode():
        return loaded.model(input_ids=batch, use_cache=False).logits.float().cpu()


def cell_batch(cells: Sequence[Cell]) -> pa.Table:
    """A batch of `Generation`: a row per cell."""
    return pa.Table.from_pylist([asdict(cell) for cell in cells], schema=CELL)


def completion_batch(completions: Sequence[Completion]) -> pa.Table:
    """What `Generation` gives: a row per completion."""
    rows = [asdict(c.cell) | {name: getattr(c, name) for name in RESULTS} for c in completions]
    return pa.Table.from_pylist(rows, schema=COMPLETION)


def cells_in(table: pa.Table) -> list[Cell]:
    """The cells of a batch's rows."""
    return [Cell(**row) for row in table.select(CELL.names).to_pylist()]


def completions_in(table: pa.Table) -> list[Completion]:
    """The completions of a batch's rows."""
    rows = table.select(RESULTS).to_pylist()
    return [Completion(cell=cell, **row) for cell, row in zip(cells_in(table), rows, strict=True)]


class Generation:
    """Cells -> completions. A batch that is one pack of the engine's (`Engine.packs`) stays one."""

    def __init__(self, grid: Grid, engine: Engine) -> None:
        self.grid = grid
        self.engine = engine

    def __call__(self, cells: pa.Table) -> pa.Table:
        """CELL -> COMPLETION, in any order.

        Raises:
            UserError: if a single text does not fit the memory.
        """
        packs = list(self.engine.generate([self.grid.row(cell) for cell in cells_in(cells)]))
        if len(packs) > 1:  # the batch did not fit: what fits is tried first from now on
            self.engine.batch_size = max(map(len, packs))
        return completion_batch([completion for pack in packs for completion in pack])


class Scoring:
    """Completions -> scores; those that failed have none.

    Args:
        prompts: text by prompt id.
        with_prompt: whether the prompt is scored together with its continuation.
    """

    def __init__(self, scorers: Scorers, prompts: Mapping[str, str], with_prompt: bool) -> None:
        self.scorers = scorers
        self.prompts = prompts
        self.with_prompt = with_prompt

    def texts(self, completions: pa.Table) -> list[str]:
        """What each completion is scored by."""
        texts: list[str] = completions["completion"].to_pylist()
        if not self.with_prompt:
            return texts
        return [self.prompts[prompt] + text for prompt, text in zip(completions["prompt_id"].to_pylist(), texts, strict=True)]

    def __call__(self, completions: pa.Table) -> pa.Table:
        """COMPLETION -> CELL and one float32 column per metric."""
        scored = completions.filter(pc.is_null(completions["failure"]))
        values = self.scorers.score(self.texts(scored)).astype(np.float32)
        table = scored.select(CELL.names)
        for i, metric in enumerate(self.scorers.metrics):
            table = table.append_column(metric, pa.array(values[:, i]))
        return table

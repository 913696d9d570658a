"""The stages of a sweep: callables from a batch of columns to a batch of columns, the same in one process and on many machines.

Cells -> completions (`Generation`) -> scores (`Scoring`). A batch is an Arrow table with a row per cell, so that it crosses machines as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from emo_mlflow.models.blocks import BlockStack
from emo_mlflow.models.chat import end_tokens
from emo_mlflow.models.loading import LoadedModel
from emo_mlflow.models.tokens import text_decoder
from emo_mlflow.scoring.protocol import Scorers
from emo_mlflow.settings.sweep import SweepConfig
from emo_mlflow.settings.templates import form_of
from emo_mlflow.steering.engine import Engine
from emo_mlflow.steering.sampling import Decoding
from emo_mlflow.sweeping.grid import Grid
from emo_mlflow.sweeping.schemas import COMPLETIONS, CONDITIONS, KEYS
from emo_mlflow.types import Cell, Completion, Tokens

RESULTS = [item.name for item in fields(Completion) if item.name != "cell"]
CELL = COMPLETIONS.schema(KEYS)
COMPLETION = pa.schema([*CELL, *(COMPLETIONS.field(name) or CONDITIONS.field(name) for name in RESULTS)])  # n_patched is summed over cells


def make_engine(config: SweepConfig, loaded: LoadedModel, stack: BlockStack) -> Engine:
    """The engine, set up for a sweep's settings."""
    ends = end_tokens(loaded, form_of(config))
    decoding = Decoding(config.sequence_length, config.min_new_tokens, config.temperature, ends, loaded.absent_ids)
    return Engine(stack, decoding, text_decoder(loaded), config.batch_size)


def probe_logits(loaded: LoadedModel, tokens: Tokens) -> torch.Tensor:
    """The unhooked model's logits on a prompt: equal before and after a sweep if nothing was left behind."""
    batch = torch.tensor([tokens], device=loaded.model.device)
    with torch.inference_mode():
        return loaded.model(input_ids=batch, use_cache=False).logits.float().cpu()


def cell_batch(cells: Sequence[Cell]) -> pa.Table:
    """A batch of `Generation`: a row per cell."""
    return pa.table({name: [getattr(cell, name) for cell in cells] for name in CELL.names}, schema=CELL)


def completion_batch(completions: Sequence[Completion]) -> pa.Table:
    """What `Generation` gives: a row per completion."""
    cells = cell_batch([item.cell for item in completions])
    results = {name: [getattr(item, name) for item in completions] for name in RESULTS}
    return pa.table({**dict(zip(CELL.names, cells.columns, strict=True)), **results}, schema=COMPLETION)


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

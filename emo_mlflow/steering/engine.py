"""The engine: cells in, completions out, in packs that fit the memory.

On a CPU the rows of a pack are divided among threads, each with a stack of its own that shares the weights: products of a few hundred
rows run at twice the speed on two threads that do one each, and at 1.7 times on two that share one; everything else is divided too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from threading import Event

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from emo_mlflow.common.machine import free_memory
from emo_mlflow.errors import UserError
from emo_mlflow.models.blocks import BlockStack
from emo_mlflow.steering.decoding import UNKNOWN, Decoded, PackDecoder
from emo_mlflow.steering.likelihood import distinct_2, texts_nll
from emo_mlflow.steering.packing import Row, plan_packs
from emo_mlflow.steering.parallel import n_cores, on_threads
from emo_mlflow.steering.positions import edits_prompts
from emo_mlflow.steering.sampling import Decoding
from emo_mlflow.types import Completion

CPU_BATCH = 384  # past this a CPU's matrix products gain nothing, and completions come later
LEAST_ROWS_OF_A_THREAD, BEST_ROWS_OF_A_THREAD = 32, 96  # with few rows, weights are read too often for what they multiply
GPU_BATCH = 8192
MEMORY_SHARE = 0.6
OUT_OF_MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory")


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error).lower() for words in OUT_OF_MEMORY_WORDS)


def attention_kernel(device: torch.device) -> AbstractContextManager[None]:
    """On a GPU, the kernel that needs no plan for each shape (cuDNN makes one at every step of a pack: 22 s) and is as fast at one query."""
    return sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]) if device.type == "cuda" else nullcontext()


def _edits_prompts(rows: Sequence[Row]) -> bool:
    return any(row.patch is not None and edits_prompts(row.patch.scope) for row in rows)


@dataclass(frozen=True)
class MemoryEstimate:
    """What one row of a pack takes, in bytes, and how many rows fit."""

    per_row: int
    batch_size: int


class Engine:
    """Generates completions under interventions, and measures their fluency under the unpatched model."""

    def __init__(
        self, stack: BlockStack, decoding: Decoding, decode: Callable[[list[list[int]]], list[str]], batch_size: int | None = None
    ) -> None:
        self.stack = stack
        self.decoding = decoding
        self.decode = decode
        self.batch_size = batch_size

    def estimate(self, prompt_length: int, q: int) -> MemoryEstimate:
        """The rows that a share of the free memory holds.

        Per row: keys and values of all slots (measured on one token), once more where rows that have ended are copied out, about 16
        streams of activations for q positions or one for each step, and four copies of the logits.
        """
        n_slots = prompt_length + self.decoding.n_steps
        size = torch.finfo(self.stack.dtype).bits // 8
        copies = 1 + (self.decoding.min_new_tokens < self.decoding.n_steps)
        activations = 16 * max(q, self.decoding.n_steps) * self.stack.d_model * size
        per_row = copies * n_slots * self.stack.bytes_per_slot + activations + 4 * self.stack.vocabulary * 4
        most = max(CPU_BATCH, BEST_ROWS_OF_A_THREAD * n_cores(self.stack)) if self.stack.device.type == "cpu" else GPU_BATCH
        fits = int(free_memory(self.stack.device) * MEMORY_SHARE) // per_row
        return MemoryEstimate(per_row, max(1, min(most, fits)))

    def packs(self, rows: Sequence[Row]) -> list[list[Row]]:
        """The rows in packs that fit the memory, as `generate` decodes them; a pack alone is cut no further."""
        if not rows:
            return []
        longest = max(len(row.tokens) for row in rows)
        return self._packs(rows, self.batch_size or self.estimate(longest, longest if _edits_prompts(rows) else 1).batch_size)

    def _packs(self, rows: Sequence[Row], batch_size: int) -> list[list[Row]]:
        return plan_packs(rows, batch_size, lambda length: self.stack.is_long(length, self.decoding.n_steps))

    def generate(self, rows: Sequence[Row]) -> Iterator[list[Completion]]:
        """Yields the completions of one pack after another; a pack that does not fit the memory is halved and tried again.

        Raises:
            UserError: if a single row does not fit.
        """
        waiting = self.packs(rows)[::-1]
        while waiting:
            pack = waiting.pop()
            try:
                done = self._run(pack)
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                done = None
            if done is not None:
                yield done
                continue
            if len(pack) == 1:
                raise UserError(
                    "not enough memory for a single text: use a smaller model, dtype=bfloat16 or a shorter sequence_length"
                )
            if self.stack.device.type == "cuda":
                torch.cuda.empty_cache()
            left = [row for other in (*waiting[::-1], pack) for row in other]
            waiting = self._packs(left, -(-len(pack) // 2))[::-1]

    def _run(self, pack: Sequence[Row]) -> list[Completion]:
        with attention_kernel(self.stack.device):
            decoded = self._judged(self._decode(pack))
        texts = self.decode([list(item.tokens) for item in decoded])
        return [_completion(item, text) for item, text in zip(decoded, texts, strict=True)]

    def _judged(self, decoded: Sequence[Decoded]) -> list[Decoded]:
        """With the likelihoods of texts that are judged behind another prompt than they continue."""
        wanted = {
            i: (item.row.likely_after, item.tokens)
            for i, item in enumerate(decoded)
            if item.row.with_nll and item.row.likely_after is not None and item.tokens and item.overflow_step is None
        }
        distinct = list(dict.fromkeys(wanted.values()))
        lines = dict(zip(distinct, texts_nll(self.stack, distinct), strict=True))
        found = {i: (float(lines[pair].mean()), float(lines[pair].std(correction=0))) for i, pair in wanted.items()}
        return [replace(item, nll=found[i][0], nll_sd=found[i][1]) if i in found else item for i, item in enumerate(decoded)]

    def _decode(self, pack: Sequence[Row]) -> list[Decoded]:
        """The pack's rows, divided among as many threads as it has enough rows for."""
        n = max(1, min(n_cores(self.stack), len(pack) // LEAST_ROWS_OF_A_THREAD))
        parts = np.array_split(np.arange(len(pack)), n)

        def work(stack: BlockStack, part: int, stop: Event) -> list[Decoded]:
            return PackDecoder(stack, [pack[i] for i in parts[part]], self.decoding).run(stop)

        return [decoded for part in on_threads(self.stack, n, work) for decoded in part]


def _completion(item: Decoded, text: str) -> Completion:
    if item.overflow_step is not None:
        reason = f"the logits of step {item.overflow_step} were not finite: alpha is too large for this layer"
        return Completion(item.row.cell, "", 0, *UNKNOWN, float("nan"), item.n_patched, reason)
    return Completion(item.row.cell, text, len(item.tokens), item.nll, item.nll_sd, distinct_2(item.tokens), item.n_patched)

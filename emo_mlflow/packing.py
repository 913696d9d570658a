"""Packs: rows of many conditions and prompts that are decoded in one batch, and what their prompts share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emo_mlflow.cache import PackedCache
from emo_mlflow.layers import BlockStack
from emo_mlflow.steering import Intervention
from emo_mlflow.types import Cell

Tokens = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Row:
    """A cell made ready for the engine.

    Attributes:
        tokens: the prompt, document-start token included.
        patch: None for the baseline.
        noise_seed: what sampling noise is drawn from; rows of one prompt and sample share it, so that conditions are paired.
    """

    cell: Cell
    tokens: Tokens
    patch: Intervention | None
    noise_seed: int = 0


def pack_key(patch: Intervention, prompt_length: int) -> tuple[object, ...]:
    """Rows of equal keys can share a pack: they agree on how many positions a step runs.

    Where the prompt is edited too, prompts must also be of one length; 0 stands for any.
    """
    constant = patch.constant or patch.scope != "window"
    return (patch.scope, patch.window, constant, prompt_length if patch.scope == "all" else 0)


def plan_packs(rows: Sequence[Row], batch_size: int) -> list[list[Row]]:
    """Splits rows into packs of at most `batch_size`, similar prompt lengths together, so that little is padded.

    The rows of a prompt stay together as far as the batch size allows, so that a pack needs few prefills. Baselines join any pack.
    """
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        if row.patch is not None:
            groups.setdefault(pack_key(row.patch, len(row.tokens)), []).append(row)
    for row in rows:
        if row.patch is None:
            key = next((key for key in groups if key[-1] in (0, len(row.tokens))), ("baselines", 0))
            groups.setdefault(key, []).append(row)
    packs: list[list[Row]] = []
    for group in groups.values():
        ordered = sorted(group, key=lambda row: (len(row.tokens), row.tokens, row.cell.sample))
        packs += [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]
    return packs


class Prefill:
    """The clean forward pass of distinct prompts, shared by all rows that continue them.

    Prompts of one length are run together, so nothing is padded.

    Attributes:
        states: per prompt, [n_layers + 1, q, d_model]: the residual stream at every boundary, at the last position or at all.
    """

    def __init__(self, stack: BlockStack, prompts: Sequence[Tokens], all_positions: bool) -> None:
        self.prompts = list(dict.fromkeys(prompts))
        self.index = {tokens: i for i, tokens in enumerate(self.prompts)}
        self.states: list[Tensor] = [torch.empty(0)] * len(self.prompts)
        self.caches: dict[int, PackedCache] = {}
        self.slot_in_cache: dict[Tokens, int] = {}
        for length in sorted({len(tokens) for tokens in self.prompts}):
            group = [tokens for tokens in self.prompts if len(tokens) == length]
            cache = PackedCache(len(group), length)
            batch = torch.tensor(group, dtype=torch.long, device=stack.device)
            first = 0 if all_positions else length - 1
            states = torch.stack([hidden[:, first:] for hidden in stack.boundaries(batch, cache)], dim=1)
            self.caches[length] = cache
            for i, tokens in enumerate(group):
                self.slot_in_cache[tokens] = i
                self.states[self.index[tokens]] = states[i]


class Layout:
    """Rows side by side in one cache, their prompts ending at the same slot.

    Attributes:
        end: the slot after every prompt's last token.
        offsets: int64 [rows, 1], what a slot's number exceeds the position in the row's own text by.
        mask: int64 [rows, slots], 0 where a shorter prompt has nothing; None if no prompt is shorter.
    """

    def __init__(self, prefill: Prefill, prompts: Sequence[Tokens], n_new: int, device: torch.device) -> None:
        self.prefill = prefill
        self.prompts = list(prompts)
        self.end = max(len(tokens) for tokens in prompts)
        self.cache = PackedCache(len(prompts), self.end + n_new)
        offsets = torch.tensor([self.end - len(tokens) for tokens in prompts], device=device)
        self.offsets = offsets[:, None]
        self.mask: Tensor | None = None
        if bool(offsets.any()):
            self.mask = (torch.arange(self.end + n_new, device=device)[None] >= self.offsets).long()
        self.fill()

    def fill(self) -> None:
        """Copies the prompts' clean keys and values in, over whatever their slots held."""
        device = self.offsets.device
        for length, source in self.prefill.caches.items():
            rows = [i for i, tokens in enumerate(self.prompts) if len(tokens) == length]
            if rows:
                slots = [self.prefill.slot_in_cache[self.prompts[i]] for i in rows]
                self.cache.take_prefix(
                    source, torch.tensor(rows, device=device), torch.tensor(slots, device=device), length, self.end
                )

    def positions(self, start: int, end: int) -> Tensor:
        """int64 [rows or 1, end - start], the positions of the slots start..end-1 in the rows' own texts."""
        slots = torch.arange(start, end, device=self.offsets.device)[None]
        return slots if self.mask is None else slots - self.offsets

    def visible(self, end: int) -> Tensor | None:
        """The mask of the slots 0..end-1."""
        return None if self.mask is None else self.mask[:, :end]

    def keep(self, rows: Tensor) -> None:
        """Drops all rows but these."""
        self.prompts = [self.prompts[i] for i in rows.tolist()]
        self.offsets = self.offsets[rows]
        self.mask = None if self.mask is None else self.mask[rows]
        self.cache.keep(rows)

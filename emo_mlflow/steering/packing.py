"""Packs: rows of many conditions and prompts that are decoded in one batch, and what their prompts share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from emo_mlflow.models.blocks import BlockStack, Entry
from emo_mlflow.models.kv_cache import PackedCache
from emo_mlflow.steering.edits import Intervention
from emo_mlflow.steering.positions import edits_prompts
from emo_mlflow.types import Cell, Tokens

ENOUGH = 1024  # rows at which a pack of one length, which needs no mask, beats a longer padded one


@dataclass(frozen=True, eq=False)
class Row:
    """A cell made ready for the engine.

    Attributes:
        tokens: the prompt, document-start token included.
        patch: None for the baseline.
        noise_seed: what sampling noise is drawn from; rows of one prompt and sample share it, so that conditions are paired.
        with_nll: whether the text's likelihood under the unpatched model is computed, which takes a third of the time.
        likely_after: the prompt behind which the text's likelihood is taken, where that is not the one that it continues.
    """

    cell: Cell
    tokens: Tokens
    patch: Intervention | None
    noise_seed: int = 0
    with_nll: bool = True
    likely_after: Tokens | None = None


def pack_key(patch: Intervention, prompt_length: int) -> tuple[object, ...]:
    """Rows of equal keys can share a pack: they agree on how many positions a step runs.

    Where the prompt is edited too, prompts must also be of one length; 0 stands for any.
    """
    constant = patch.constant or patch.scope != "window"
    return (patch.scope, patch.window, constant, prompt_length if edits_prompts(patch.scope) else 0)


def plan_packs(rows: Sequence[Row], batch_size: int, is_long: Callable[[int], bool] = lambda length: False) -> list[list[Row]]:
    """Splits rows into packs of at most `batch_size`, similar prompt lengths together, so that little is padded.

    The rows of a prompt stay together as far as the batch size allows, so that a pack needs few prefills. Baselines join any pack.

    Args:
        is_long: by a prompt's length, which rows may not be beside others, for the model encodes their positions in another way.
    """
    kinds: dict[bool, list[Row]] = {}
    for row in rows:
        kinds.setdefault(is_long(len(row.tokens)), []).append(row)
    return [pack for kind in kinds.values() for pack in _plan_alike(kind, batch_size)]


def _plan_alike(rows: Sequence[Row], batch_size: int) -> list[list[Row]]:
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
        packs.append([])
        for row in sorted(group, key=lambda row: (len(row.tokens), row.tokens, row.cell.sample)):
            pack = packs[-1]
            longer = len(pack) >= ENOUGH and len(pack[-1].tokens) < len(row.tokens)
            if longer or len(pack) == batch_size:
                packs.append(pack := [])
            pack.append(row)
    return packs


class Prefill:
    """The clean forward pass of distinct prompts, shared by all rows that continue them.

    Prompts of one length are run together, so nothing is padded.

    Attributes:
        states: [prompts, n_layers + 1, q, d_model]: the residual stream at every boundary, at the last position or, if the prompts
            are of one length, at all.
    """

    def __init__(self, stack: BlockStack, prompts: Sequence[Tokens], all_positions: bool) -> None:
        distinct = sorted(dict.fromkeys(prompts), key=len)
        self.index = {tokens: i for i, tokens in enumerate(distinct)}
        self.caches: dict[int, PackedCache] = {}
        self.slot_in_cache: dict[Tokens, int] = {}
        states = []
        for length, members in groupby(distinct, key=len):
            group = list(members)
            cache = PackedCache(len(group), length)
            batch = torch.tensor(group, dtype=torch.long, device=stack.device)
            first = 0 if all_positions else length - 1
            states.append(torch.stack([hidden[:, first:] for hidden in stack.boundaries(batch, cache)], dim=1))
            self.caches[length] = cache
            self.slot_in_cache |= {tokens: i for i, tokens in enumerate(group)}
        self.states = torch.cat(states)


class Layout:
    """Rows side by side in one cache, their prompts ending at the same slot.

    Attributes:
        rows: each row's prompt.
        end: the slot after every prompt's last token.
        prompts: int64 [rows], each row's prompt in the prefill.
        offsets: int64 [rows, 1], a slot's number minus the position in the row's own text.
        mask: int64 [rows, slots], 0 where a shorter prompt has nothing; None if no prompt is shorter.
    """

    def __init__(self, prefill: Prefill, rows: Sequence[Tokens], n_new: int, device: torch.device) -> None:
        self.prefill = prefill
        self.rows = list(rows)
        self.end = max(len(tokens) for tokens in rows)
        self.cache = PackedCache(len(rows), self.end + n_new)
        self.prompts = torch.tensor([prefill.index[tokens] for tokens in rows], device=device)
        self.offsets = torch.tensor([[self.end - len(tokens)] for tokens in rows], device=device)
        self.mask: Tensor | None = None
        if any(len(tokens) < self.end for tokens in rows):
            self.mask = (torch.arange(self.end + n_new, device=device)[None] >= self.offsets).long()
        self.fill()

    def fill(self) -> None:
        """Copies the prompts' clean keys and values in, over whatever their slots held."""
        by_length: dict[int, list[int]] = {}
        for i, tokens in enumerate(self.rows):
            by_length.setdefault(len(tokens), []).append(i)
        for length, members in by_length.items():
            rows, sources = (
                torch.tensor(numbers, device=self.prompts.device)
                for numbers in (members, [self.prefill.slot_in_cache[self.rows[i]] for i in members])
            )
            self.cache.take_prefix(self.prefill.caches[length], rows, sources, length, self.end)

    def states(self, boundary: int, rows: slice) -> Tensor:
        """The clean residual stream of the rows' prompts at a boundary, [rows, q, d_model]."""
        return self.prefill.states[self.prompts[rows], boundary]

    def enter(self, stack: BlockStack, tokens: Tensor, start: int, rows: slice) -> Entry:
        """Embeds tokens [rows, q] of these rows for the slots that begin at `start`."""
        end = start + tokens.shape[1]
        slots = torch.arange(start, end, device=tokens.device)[None]
        self.cache.start = start
        if self.mask is None:
            return stack.enter(tokens, slots, self.cache, None)
        return stack.enter(tokens, slots - self.offsets[rows], self.cache, self.mask[rows, :end])

    def take(self, rows: Sequence[int]) -> Layout:
        """A copy of these rows."""
        taken = copy(self)
        taken.cache = copy(self.cache)
        taken.cache.keys, taken.cache.values = dict(self.cache.keys), dict(self.cache.values)
        taken.keep(rows)
        return taken

    def keep(self, rows: Sequence[int]) -> None:
        """Drops all rows but these."""
        index = torch.tensor(rows, device=self.prompts.device)
        self.rows = [self.rows[i] for i in rows]
        self.prompts, self.offsets = self.prompts[index], self.offsets[index]
        self.mask = None if self.mask is None else self.mask[index]
        self.cache.keep(index)

"""Keys and values of a packed batch, in buffers that are made once and written in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache


class PackedCache(Cache):
    """A cache of fixed size whose rows and writing position the engine sets from outside.

    Slot s of every row belongs to the same step of decoding: texts of different lengths end at the same slot. Between calls
    the engine says which rows a block is run on (`select`) and at which slot its tokens begin (`start`); tokens written
    again at an old slot replace what was there, so a position that was patched becomes clean by running it clean.
    """

    def __init__(self, n_rows: int, n_slots: int) -> None:
        super().__init__(layers=[])
        self.n_rows = n_rows
        self.n_slots = n_slots
        self.start = 0
        self.rows = slice(0, n_rows)
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def select(self, rows: slice) -> slice:
        """The rows that the next block call is for."""
        self.rows = rows
        return rows

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Writes [rows, heads, q, head_dim] at `start` and returns all slots up to there of these rows."""
        if layer_idx not in self.keys:
            self.keys[layer_idx] = self._buffer(key_states)
            self.values[layer_idx] = self._buffer(value_states)
        end = self.start + key_states.shape[2]
        keys, values = self.keys[layer_idx][self.rows], self.values[layer_idx][self.rows]
        keys[:, :, self.start : end] = key_states
        values[:, :, self.start : end] = value_states
        return keys[:, :, :end], values[:, :, :end]

    def _buffer(self, like: Tensor) -> Tensor:
        return torch.zeros((self.n_rows, like.shape[1], self.n_slots, like.shape[3]), dtype=like.dtype, device=like.device)

    def take_prefix(self, source: PackedCache, rows: Tensor, source_rows: Tensor, length: int, end: int) -> None:
        """Copies `length` slots of another cache's rows so that they end before slot `end` of these rows."""
        for layer, keys in source.keys.items():
            if layer not in self.keys:
                self.keys[layer], self.values[layer] = self._buffer(keys), self._buffer(source.values[layer])
            self.keys[layer][rows, :, end - length : end] = keys[source_rows, :, :length]
            self.values[layer][rows, :, end - length : end] = source.values[layer][source_rows, :, :length]

    def keep(self, rows: Tensor) -> None:
        """Drops all rows but these."""
        for layer in self.keys:
            self.keys[layer] = self.keys[layer][rows]
            self.values[layer] = self.values[layer][rows]
        self.n_rows = len(rows)
        self.rows = slice(0, self.n_rows)

    def bytes_per_slot(self) -> int:
        """Memory of one slot of one row over all layers."""
        return sum(t[0, :, 0].numel() * t.element_size() for store in (self.keys, self.values) for t in store.values())

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Slots before the tokens to come, which is what masks and positions are made from."""
        return self.start

    def get_mask_sizes(self, query: Tensor | int, layer_idx: int = 0) -> tuple[int, int]:
        """Length and offset of the keys that a query will see; transformers 4 hands positions, 5 their number."""
        return self.start + (query if isinstance(query, int) else query.shape[0]), 0

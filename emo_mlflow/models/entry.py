"""What stands before the first block of a model: embedded tokens, and what every block is called with besides them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Entry:
    """What the model's own forward made of a batch of tokens before its first block.

    Attributes:
        hidden: [rows, q, d_model], the residual stream before block 0.
        calls: per block, the positional and keyword arguments besides the residual stream.
    """

    hidden: Tensor
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]


def take_rows(value: Any, rows: slice, n_rows: int) -> Any:
    """Cuts what has one entry per row; masks and rotary tables of batch size one, and positions [q], are shared."""
    if isinstance(value, Tensor):
        return value[rows] if value.ndim >= 2 and value.shape[0] == n_rows else value
    if isinstance(value, tuple):
        return tuple(take_rows(item, rows, n_rows) for item in value)
    return value

"""How the next token is chosen: greedy, or by noise that is a function of what it is for, on any device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# splitmix64 (Steele, Lea and Flood 2014, https://doi.org/10.1145/2714064.2660195), in signed 64-bit arithmetic that wraps around.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST, _SECOND = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen.

    Attributes:
        n_steps: new tokens per text, at most.
        min_new_tokens: end-of-sequence tokens are not chosen at earlier steps.
        temperature: 0 for greedy decoding.
        eos_ids: the tokens that end a text.
        absent_ids: numbers that stand for no token, which are never chosen.
    """

    n_steps: int
    min_new_tokens: int
    temperature: float
    eos_ids: tuple[int, ...]
    absent_ids: tuple[int, ...] = ()


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """As if x had no sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _FIRST
    x = (x ^ _shift_right(x, 27)) * _SECOND
    return x ^ _shift_right(x, 31)


def gumbel_noise(seeds: Tensor, step: int, vocabulary: int) -> Tensor:
    """Standard Gumbel noise float32 [seeds, vocabulary]; adding it to logits and taking the largest is sampling from their softmax.

    A number depends on its seed, step and token only: neither on the batch nor on the device.

    Args:
        seeds: int64 [seeds].
    """
    streams = _mix(_mix(seeds) + step * _GOLDEN % 2**63)
    tokens = torch.arange(1, vocabulary + 1, device=seeds.device)
    bits = _mix(streams[:, None] + tokens * _GOLDEN)
    uniform = (_shift_right(bits, 24).float() + 0.5) * 2.0**-40  # 40 bits, so that the largest noise is as fine as the rest
    return -(-torch.log1p(-uniform)).log()

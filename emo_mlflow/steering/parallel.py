"""Parts of one work on the threads of a CPU, each with a stack of its own that shares the weights."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TypeVar

import torch

from emo_mlflow.models.blocks import BlockStack

T = TypeVar("T")


class Stopped(Exception):
    """Work was ended from outside."""


def n_cores(stack: BlockStack) -> int:
    """Threads that torch uses for a model on a CPU; 1 for a device that divides its work itself."""
    return torch.get_num_threads() if stack.device.type == "cpu" else 1


def on_threads(stack: BlockStack, n: int, work: Callable[[BlockStack, int, Event], T]) -> list[T]:
    """work(stack, i, stop) for i in 0..n-1, at once; results in order.

    `stop` is set as soon as a part fails or this thread is interrupted, so that the others can end early.
    """
    stop = Event()
    if n == 1:
        return [work(stack, 0, stop)]
    stacks, cores = stack.replicas(n), n_cores(stack)

    def part(i: int) -> T:
        torch.set_num_threads(max(1, cores // n))  # of this thread
        stacks[i].flops = 0.0
        return work(stacks[i], i, stop)

    with ThreadPoolExecutor(n, "steering") as pool:
        try:
            done = list(pool.map(part, range(n)))
        finally:
            stop.set()
    stack.flops += sum(replica.flops for replica in stacks)
    return done

"""What a sweep will take, before it starts: floating-point operations, seconds, memory."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from emo_mlflow.sweep import Plan
from emo_mlflow.types import Condition

TYPICAL_UTILISATION = 0.6  # of the matrix-product rate, as packed decoding reaches on CPUs
PROBE_SECONDS = 0.3
PROBES = 5


@dataclass(frozen=True)
class Estimate:
    """Cells, matrix-product work in floating-point operations, seconds at a typical utilisation, and bytes at the peak."""

    n_cells: int
    n_tokens: int
    flops: float
    flops_per_second: float
    memory: int
    batch_size: int

    @property
    def seconds(self) -> float:
        """Generation and likelihoods; loading and scoring come on top."""
        return self.flops / (self.flops_per_second * TYPICAL_UTILISATION)


    def lines(self) -> list[str]:
        """For the terminal: how much, how long, how large."""
        minutes = self.seconds / 60
        length = f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
        return [
            f"Cells      {self.n_cells:,} ({self.n_tokens:,} new tokens), {self.batch_size} rows at a time",
            f"Estimate   {'under a minute' if minutes < 1 else length} of generation, {self.memory / 2**30:.1f} GiB of memory",
        ]


def gemm_rate(device: torch.device, dtype: torch.dtype, m: int, k: int, n: int) -> float:
    """Measured floating-point operations per second of a product [m, k] x [k, n]: the best of several runs."""
    left = torch.randn(m, k, device=device, dtype=dtype)
    right = torch.randn(n, k, device=device, dtype=dtype).T  # as linear layers hold their weights

    def seconds(repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            product = left @ right
        float(product[0, 0])  # waits for the device
        return time.perf_counter() - start

    seconds(2)
    repeats = max(1, int(PROBE_SECONDS / PROBES / max(seconds(1), 1e-6)))
    return repeats * 2.0 * m * k * n / min(seconds(repeats) for _ in range(PROBES))


def passes_per_token(condition: Condition, n_layers: int, n_steps: int) -> float:
    """How often a generated token goes through the blocks, in whole stacks, by the engine's schedule."""
    if condition.scope != "window" or condition.patch_window is None or condition.layer is None:
        return 1.0
    rerun = condition.patch_window * max(0, n_steps - 1 - condition.patch_window) / n_steps
    return 1.0 + rerun * (n_layers - condition.layer) / n_layers


def estimate(plan: Plan) -> Estimate:
    """The sweep's work: each token once through the patched stack (or more, under a window) and once for its likelihood."""
    config, stack = plan.config, plan.stack
    body = sum(p.numel() for p in stack.blocks.parameters())
    head = stack.model.get_output_embeddings().weight.numel()
    texts = len(plan.tokens) * config.samples_per_prompt
    passes = sum(passes_per_token(c, stack.n_layers, config.sequence_length) for c in plan.conditions) * texts
    tokens = plan.n_cells * config.sequence_length
    flops = 2.0 * (body * (passes * config.sequence_length + tokens) + 2 * head * tokens)
    longest = max(len(ids) for ids in plan.tokens.values())
    rows = plan.engine.estimate(longest, longest if config.scope == "all" else 1)
    batch = min(config.batch_size or rows.batch_size, plan.n_cells)
    weights = sum(p.numel() * p.element_size() for p in stack.model.parameters())
    return Estimate(
        n_cells=plan.n_cells,
        n_tokens=tokens,
        flops=flops,
        flops_per_second=gemm_rate(stack.device, stack.dtype, 256, stack.d_model, 4 * stack.d_model),
        memory=weights + batch * rows.per_row,
        batch_size=batch,
    )

"""What a sweep will take, before it starts: floating-point operations, seconds, memory."""

from __future__ import annotations

from dataclasses import dataclass

from emo_mlflow.common.machine import best_gemm_rate
from emo_mlflow.sweeping.plan import Plan
from emo_mlflow.types import Condition

TYPICAL_UTILISATION = 0.6  # of the matrix-product rate, as packed decoding reaches on CPUs: 0.61 to 0.76


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


def passes_per_text(condition: Condition, n_layers: int, n_steps: int, likelihood: bool = True) -> float:
    """How many tokens of a text go through the blocks, in whole stacks, by the engine's schedule: to decode it, and for its likelihood.

    Likelihoods start at the edited boundary, and under a window from what has not become clean on the way.
    """
    if condition.layer is None or not likelihood:
        return float(n_steps)
    above = (n_layers - condition.layer - (condition.site == "resid_post")) / n_layers
    if condition.scope != "window" or condition.patch_window is None:
        return n_steps + above * (n_steps - 1)
    window = condition.patch_window
    return n_steps + above * (window * max(0, n_steps - 1 - window) + min(window, n_steps - 1))


def estimate(plan: Plan) -> Estimate:
    """The sweep's work: each token through the patched stack, and for its likelihood through what is above the edited layer."""
    config, stack = plan.config, plan.stack
    body = sum(p.numel() for p in stack.blocks.parameters())
    head = stack.model.get_output_embeddings().weight.numel()
    texts = len(plan.tokens) * config.samples_per_prompt
    measured = [plan.has_likelihood(condition) for condition in plan.conditions]
    passes = sum(
        passes_per_text(c, stack.n_layers, config.sequence_length, known) for c, known in zip(plan.conditions, measured, strict=True)
    ) * texts
    tokens = plan.n_cells * config.sequence_length
    flops = 2.0 * (body * passes + (1 + sum(measured) / len(measured)) * head * tokens)
    longest = max(len(ids) for found in (plan.tokens, *plan.fronted.values()) for ids in found.values())
    rows = plan.engine.estimate(longest, longest if config.scope.startswith(("all", "prompt")) else 1)
    batch = min(config.batch_size or rows.batch_size, plan.n_cells)
    weights = sum(p.numel() * p.element_size() for p in stack.model.parameters())
    return Estimate(
        n_cells=plan.n_cells,
        n_tokens=tokens,
        flops=flops,
        flops_per_second=best_gemm_rate(stack.device, stack.dtype),
        memory=weights + batch * rows.per_row,
        batch_size=batch,
    )

"""What a block adds to the stream for each of its attention heads, measured rather than assumed.

Between the output projection and the stream a model may have a factor (Granite), a norm (Gemma, GLM-4) or a gain per channel. So
something is added to the projection's output while everything else that a block computes is held as it was: what then reaches the stream
is what heads write there themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from emo_mlflow.models.blocks import BlockStack
from emo_mlflow.models.families import find_output_projection, head_count, weight_by_head
from emo_mlflow.models.kv_cache import PackedCache

N_TOKENS = 6
TOLERANCE = {torch.float32: 1e-3}  # of what was added
TOLERANCE_OF_16_BITS = 0.05


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    return tuple(_copied(item) for item in value) if isinstance(value, tuple) else value


@contextmanager
def _hooked(modules: list[nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Held:
    """A block's modules with weights of their own, their outputs seen in one pass and held in the next."""

    def __init__(self, block: nn.Module, projection: nn.Module) -> None:
        self.projection = projection
        on_the_way = [module for module in block.modules() if projection in module.modules()]
        self._modules = [m for m in block.modules() if m not in on_the_way and any(True for _ in m.parameters())]
        self._seen: dict[nn.Module, list[Any]] = {}
        self.input, self.output = torch.empty(0), torch.empty(0)
        self._after: set[nn.Module] = set()

    def watch(self, run: Callable[[], Tensor]) -> Tensor:
        """Runs the block as it is."""

        def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if module is self.projection:
                self.input, self.output = args[0].clone(), output.clone()
            else:
                self._seen.setdefault(module, []).append(_copied(output))
                if len(self.output):
                    self._after.add(module)

        with _hooked([*self._modules, self.projection], keep):
            return run()

    def hold(self, run: Callable[[], Tensor], added: Tensor | None) -> Tensor:
        """Runs it again with what was seen held: all modules, or, where something is added to the projection's output, those after it."""
        left = {module: list(outputs) for module, outputs in self._seen.items()}

        def replace(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if module is self.projection:
                return self.output if added is None else self.output + added
            return _copied(left[module].pop(0)) if added is None or module in self._after else output

        with _hooked([*self._modules, self.projection], replace):
            return run()


@torch.inference_mode()
def head_factors(stack: BlockStack) -> tuple[float, ...] | None:
    """Per block, what is between the output projection and the stream: 1 for most models, 0.22 for some Granites.

    None if it is no such factor, if the projection is not the sum of its heads' parts, or if a block changes what earlier ones have written.
    """
    tokens = (torch.arange(1, N_TOKENS + 1, device=stack.device).repeat(2, 1) * torch.tensor([[1], [2]], device=stack.device)) % stack.vocabulary
    cache = PackedCache(2, N_TOKENS)
    entry = stack.enter(tokens, torch.arange(N_TOKENS, device=stack.device).expand(2, -1), cache)
    hidden, found = entry.hidden, []
    generator = torch.Generator().manual_seed(0)
    for layer in range(stack.n_layers):
        added = torch.randn(hidden.shape, generator=generator).to(hidden) * hidden.float().std().to(hidden)

        def run(stream: Tensor, layer: int = layer) -> Callable[[], Tensor]:
            return lambda: stack.run_block(layer, stream, entry, slice(0, 2))

        held = _Held(stack.blocks[layer], find_output_projection(stack.blocks[layer]))
        after = held.watch(run(hidden))
        passed = _factor(held.hold(run(hidden + added), None) - after, added)
        factor = _factor(held.hold(run(hidden), added) - after, added)
        if passed != 1.0 or factor is None or not _is_sum_of_heads(held, head_count(stack.model)):
            return None
        found.append(factor)
        hidden = after
    return tuple(found)


def _tolerance(dtype: torch.dtype) -> float:
    return TOLERANCE.get(dtype, TOLERANCE_OF_16_BITS)


def _factor(change: Tensor, added: Tensor) -> float | None:
    """By which number `added` was multiplied to give `change`; None if by none that is the same everywhere and is not 0."""
    wide, base, allowed = change.double(), added.double(), _tolerance(added.dtype)
    factor = float((wide * base).sum() / base.square().sum())
    gap = (wide - factor * base).norm(dim=-1) / base.norm(dim=-1)
    if abs(factor) < 1e-6 or not bool((gap <= allowed * max(1.0, abs(factor))).all()):
        return None
    return 1.0 if abs(factor - 1) <= allowed else factor


def _is_sum_of_heads(held: _Held, n_heads: int) -> bool:
    if held.input.shape[-1] % n_heads:
        return False
    parts = torch.einsum("rqhd,hdm->rqm", held.input.unflatten(-1, (n_heads, -1)).float(), weight_by_head(held.projection, n_heads).float())
    bias = getattr(held.projection, "bias", None)
    gap = (parts + (0 if bias is None else bias.float()) - held.output.float()).abs().max()
    return bool(gap <= _tolerance(held.output.dtype) * held.output.float().abs().max())

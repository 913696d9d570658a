"""The definition of a steered generation: no cache, one row, the whole text again for every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from emo_mlflow.models.families import find_blocks, find_output_projection
from emo_mlflow.steering.edits import HeadPatch, Patch
from emo_mlflow.steering.packing import Row


def reference_positions(scope: str, window: int | None, prompt_length: int, step: int) -> list[tuple[int, int]]:
    """(position, step whose alpha holds there) of everything that is edited in the forward pass of a step."""
    end = prompt_length + step
    if scope == "window":
        return [(prompt_length - 1, 0)] if step == 0 else [(j, step) for j in range(max(prompt_length, end - (window or 0)), end)]
    if scope == "prompt":
        return [(j, 0) for j in range(max(0, prompt_length - (window or prompt_length)), prompt_length)]
    if scope == "first":
        end = min(end, prompt_length + (window or 0))
    first = 0 if scope == "all" else prompt_length - 1
    return [(j, max(0, j - prompt_length + 1)) for j in range(first, end)]


def edited_residual(patch: Patch, h: Tensor, step: int) -> Tensor:
    """The residual h, [d_model], as a patch makes it at a step."""
    g = h + float(patch.alpha_by_step[step]) * torch.from_numpy(patch.shift)
    if patch.removed is not None:
        removed = torch.from_numpy(patch.removed)
        g = g - removed.T @ (removed @ h)
    return g * (h.norm() / g.norm()) if patch.keeps_norm else g


def hook_boundary(model: PreTrainedModel, boundary: int, edit: Callable[[Tensor], Tensor]) -> RemovableHandle:
    """Edits the residual stream before block `boundary`, or after the last one, until the handle is removed."""

    def before(module, args):
        return (edit(args[0]), *args[1:])

    def after(module, args, output):
        return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

    blocks = find_blocks(model)
    if boundary == len(blocks):
        return blocks[-1].register_forward_hook(after)
    return blocks[boundary].register_forward_pre_hook(before)


@torch.no_grad()
def reference_logits(model: PreTrainedModel, row: Row, generated: Sequence[int]) -> Tensor:
    """float32 logits of the token that each step chooses, those of the next one included, [generated + 1, vocabulary].

    A copy of the text for every step: edited as it is at that step, and read at that step's last position, from which no attention
    sees what comes later.
    """
    n_steps, prompt_length = len(generated) + 1, len(row.tokens)
    tokens = torch.tensor([[*row.tokens, *generated]] * n_steps)
    patch = row.patch
    blocks = find_blocks(model)
    edited = [[] if patch is None else reference_positions(patch.scope, patch.window, prompt_length, step) for step in range(n_steps)]

    def replace_head(module, args):
        assert isinstance(patch, HeadPatch)
        mixed, width = args[0].clone(), len(patch.replacement)
        for step, positions in enumerate(edited):
            for position, _ in positions:
                mixed[step, position, patch.head * width : (patch.head + 1) * width] = torch.from_numpy(patch.replacement)
        return (mixed, *args[1:])

    def edit(each: Patch, hidden: Tensor) -> Tensor:
        hidden = hidden.clone()
        for step, positions in enumerate(edited):
            for position, alpha_step in positions:
                hidden[step, position] = edited_residual(each, hidden[step, position].clone(), alpha_step)
        return hidden

    handles = []
    if isinstance(patch, HeadPatch):
        handles.append(find_output_projection(blocks[patch.boundary]).register_forward_pre_hook(replace_head))
    elif patch is not None:
        handles += [hook_boundary(model, each.boundary, partial(edit, each)) for each in (patch, *patch.then)]
    try:
        logits = model(input_ids=tokens, use_cache=False).logits
        return torch.stack([logits[step, prompt_length + step - 1] for step in range(n_steps)]).float()
    finally:
        for handle in handles:
            handle.remove()

"""Given tokens through a model's own forward pass, under hooks and without a cache; and random texts and patches to try it on."""

from __future__ import annotations

import numpy as np
import torch
from packs import D_MODEL, N_LAYERS, VOCABULARY
from reference import edited_residual
from torch import Tensor
from transformers import PreTrainedModel

from emo_mlflow.models.families import find_blocks
from emo_mlflow.steering.edits import Patch
from emo_mlflow.types import FloatArray, Tokens

BOUNDARIES = range(N_LAYERS + 1)


def texts_of(rng: np.random.Generator, n: int) -> list[Tokens]:
    """Of 3 to 20 tokens, which is longer than the local attention of some families."""
    return [tuple(int(token) for token in rng.integers(8, VOCABULARY, rng.integers(3, 21))) for _ in range(n)]


def patch_of(shift: FloatArray, boundary: int, alpha: float = 1.0, basis: FloatArray | None = None) -> Patch:
    return Patch(boundary, "generated", None, shift.astype(np.float32), basis, np.array([alpha], np.float32))


def patches_of(rng: np.random.Generator, n: int) -> list[Patch]:
    """Additions, clamps and projections, at all boundaries in no order."""
    found = []
    for i in range(n):
        basis = np.linalg.qr(rng.normal(size=(D_MODEL, 2)))[0].T.astype(np.float32) if i % 3 else None
        shift = rng.normal(size=D_MODEL) * 3 if basis is None else (i % 3 - 1) * rng.normal(size=2) * 20 @ basis
        found.append(patch_of(shift, int(rng.integers(0, N_LAYERS + 1)), float(rng.normal()), basis))
    return found


@torch.no_grad()
def plain_logits(model: PreTrainedModel, tokens: Tokens, patch: Patch | None) -> Tensor:
    """float32 [q, vocabulary]: the model's own forward pass, the stream edited by a hook at every position but the first."""

    def edit(hidden: Tensor) -> Tensor:
        hidden = hidden.clone()
        assert patch is not None
        for position in range(1, len(tokens)):
            hidden[0, position] = edited_residual(patch, hidden[0, position].clone(), 0)
        return hidden

    def after(module, args, output):
        return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

    blocks, handles = find_blocks(model), []
    if patch is not None and patch.boundary < len(blocks):
        handles = [blocks[patch.boundary].register_forward_pre_hook(lambda module, args: (edit(args[0]), *args[1:]))]
    elif patch is not None:
        handles = [blocks[-1].register_forward_hook(after)]
    try:
        return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].float()
    finally:
        for handle in handles:
            handle.remove()

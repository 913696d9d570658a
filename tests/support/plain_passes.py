"""Given tokens through a model's own forward pass, under hooks and without a cache; and random texts and patches to try it on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from packs import D_MODEL, N_LAYERS, VOCABULARY
from reference import edited_residual, hook_boundary
from torch import Tensor
from transformers import PreTrainedModel

from emo_mlflow.steering.edits import Patch
from emo_mlflow.types import FloatArray, Tokens

BOUNDARIES = range(N_LAYERS + 1)


def texts_of(rng: np.random.Generator, n: int) -> list[Tokens]:
    """Of 3 to 20 tokens, which is longer than the local attention of some families."""
    return [tuple(int(token) for token in rng.integers(8, VOCABULARY, rng.integers(3, 21))) for _ in range(n)]


def patch_of(
    shift: FloatArray, boundary: int, alpha: float = 1.0, removed: FloatArray | None = None, keeps_norm: bool = False
) -> Patch:
    return Patch(boundary, "generated", None, shift.astype(np.float32), removed, np.array([alpha], np.float32), keeps_norm)


def patches_of(rng: np.random.Generator, n: int) -> list[Patch]:
    """Additions, clamps, projections and rotations, at all boundaries in no order."""
    found = []
    for i in range(n):
        basis = np.linalg.qr(rng.normal(size=(D_MODEL, 2)))[0].T.astype(np.float32) if i % 3 else None
        shift = rng.normal(size=D_MODEL) * 3 if basis is None else (i % 3 - 1) * rng.normal(size=2) * 20 @ basis
        found.append(patch_of(shift, int(rng.integers(0, N_LAYERS + 1)), float(rng.normal()), basis, keeps_norm=i % 4 == 3))
    return found


@torch.no_grad()
def plain_logits(model: PreTrainedModel, tokens: Tokens, patches: Sequence[Patch | None]) -> Tensor:
    """float32 [patches, q, vocabulary]: the model's own forward pass over a copy of the text for every patch.

    Hooks edit the stream of a copy at every position but the first; None leaves it as it is.
    """

    def edit_at(boundary: int) -> Callable[[Tensor], Tensor]:
        def edit(hidden: Tensor) -> Tensor:
            hidden = hidden.clone()
            for row, patch in enumerate(patches):
                for each in () if patch is None else (patch, *patch.then):
                    for position in range(1, len(tokens)) if each.boundary == boundary else ():
                        hidden[row, position] = edited_residual(each, hidden[row, position].clone(), 0)
            return hidden

        return edit

    handles = [hook_boundary(model, boundary, edit_at(boundary)) for boundary in {each.boundary for p in patches if p for each in (p, *p.then)}]
    try:
        return model(input_ids=torch.tensor([tokens] * len(patches)), use_cache=False).logits.float()
    finally:
        for handle in handles:
            handle.remove()

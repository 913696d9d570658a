"""Teacher forcing: given tokens through the unpatched model once, and through the blocks above the edit for each of many patches.

The first position of a text is never edited: it is the document-start token, an attention sink. All others are, as under scope
`generated` from the first new token on. Texts of different lengths are padded on the right, which no causal position sees.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emo_mlflow.models.blocks import BlockStack
from emo_mlflow.models.kv_cache import PackedCache
from emo_mlflow.steering.edits import FurtherEdits, Patch, RowEdits
from emo_mlflow.types import Tokens


@dataclass(frozen=True, eq=False)
class Forced:
    """Tokens that the unpatched model has been given.

    Attributes:
        tokens: int64 [texts, q], padded on the right.
        start: the position of the first of them; what comes before is in a cache.
        states: the clean stream [texts, q, d_model] by boundary, at the boundaries that were asked for and after the last block.
    """

    tokens: Tensor
    start: int
    states: Mapping[int, Tensor]


def padded(texts: Sequence[Tokens], device: torch.device) -> Tensor:
    """int64 [texts, longest]; token 0 where a text has ended."""
    longest = max(map(len, texts))
    return torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts], dtype=torch.long, device=device)


@torch.inference_mode()
def run_clean(
    stack: BlockStack, tokens: Tensor, boundaries: Collection[int], cache: PackedCache, start: int = 0
) -> Forced:
    """Tokens [texts, q] that continue what `cache` holds, through the unpatched model."""
    wanted = {*boundaries, stack.n_layers}
    found = {i: hidden for i, hidden in enumerate(stack.boundaries(tokens, cache, start)) if i in wanted}
    return Forced(tokens, start, found)


@torch.inference_mode()
def run_patched(
    stack: BlockStack, clean: Forced, texts: Sequence[int], patches: Sequence[Patch], cache: PackedCache
) -> Tensor:
    """The stream after the last block, [rows, q, d_model]: row i is text texts[i] under patches[i], at the first step's alpha.

    Args:
        patches: ascending by boundary; each at a boundary that `clean` has.
        cache: of as many rows; it holds what comes before, under the same patches.
    """
    index = torch.tensor(texts, dtype=torch.long, device=stack.device)
    tokens = clean.tokens[index]
    rows, q = tokens.shape
    cache.start = clean.start
    positions = torch.arange(clean.start, clean.start + q, device=stack.device).expand(rows, q)
    entry = stack.enter(tokens, positions, cache)
    edits = RowEdits(patches, stack.d_model, 1, stack.device, stack.dtype)
    further = FurtherEdits(patches, stack.d_model, 1, stack.device, stack.dtype)
    boundaries = [patch.boundary for patch in patches]
    kept = 1 if clean.start == 0 else 0
    hidden = entry.hidden[:0]
    for boundary in range(boundaries[0], stack.n_layers + 1):
        span = slice(bisect_left(boundaries, boundary), bisect_right(boundaries, boundary))
        if span.stop > span.start:
            entering = clean.states[boundary][index[span]]
            entering[:, kept:] = edits.apply(entering[:, kept:], span, 0)
            hidden = torch.cat([hidden, entering])
        further.apply(boundary, hidden, q - kept, 0)
        if boundary < stack.n_layers:
            hidden = stack.run_block(boundary, hidden, entry, cache.select(slice(0, len(hidden))))
    return hidden

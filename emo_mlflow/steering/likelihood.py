"""How broken a completion is: its likelihood under the unpatched model, and how much it repeats itself."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import groupby, islice, pairwise

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from emo_mlflow.models.blocks import BlockStack
from emo_mlflow.models.kv_cache import PackedCache
from emo_mlflow.steering.packing import Layout
from emo_mlflow.types import Tokens

LOGITS_BYTES = {"cpu": 128 * 2**20}
LOGITS_BYTES_ON_A_GPU = 2 * 2**30
TOKENS_AT_ONCE = {"cpu": 2048}  # what stays in a CPU's cache
TOKENS_ON_A_GPU = 65536


def distinct_2(tokens: Sequence[int]) -> float:
    """Distinct bigrams over all bigrams (Li et al. 2016, arXiv:1510.03055); NaN below two tokens."""
    pairs = list(pairwise(tokens))
    return len(set(pairs)) / len(pairs) if pairs else float("nan")


@torch.inference_mode()
def token_nll(
    stack: BlockStack, layout: Layout, tokens: Tensor, boundaries: Sequence[int], streams: Tensor, finals: Tensor
) -> Tensor:
    """Negative log-likelihood (nats) of each new token under the unpatched model, float32 [rows, n] on the CPU.

    Below a row's boundary nothing was patched: its clean stream there was computed while decoding, so only the blocks above are run.
    Their keys and values in `layout` are overwritten with clean ones.

    Args:
        layout: what stands before the positions of `streams` must be clean.
        tokens: int64 [rows, n], the new tokens.
        boundaries: [rows], ascending.
        streams: [rows, q, d_model], the clean stream at each row's boundary at the q positions before the last new token.
        finals: [rows, n - q, d_model], the clean stream after the last block at the positions before those, from the last prompt token on.
    """
    (rows, n), q = tokens.shape, streams.shape[1]
    start = layout.end + n - 1 - q
    at_once = max(1, TOKENS_AT_ONCE.get(stack.device.type, TOKENS_ON_A_GPU) // n)
    parts = []
    for first in range(0, rows, at_once):
        chunk = slice(first, min(rows, first + at_once))
        cleaned = streams[chunk]
        if q:
            cleaned = _run_above(stack, layout, tokens[chunk, n - 1 - q : n - 1], start, boundaries, cleaned, chunk)
        every = torch.cat([finals[chunk], cleaned], dim=1)
        parts.append(nll_of(stack, every.flatten(0, 1), tokens[chunk].flatten()).view(-1, n))
    return torch.cat(parts).cpu()


def _run_above(
    stack: BlockStack,
    layout: Layout,
    tokens: Tensor,
    start: int,
    boundaries: Sequence[int],
    streams: Tensor,
    chunk: slice,
) -> Tensor:
    """Each row's stream [rows, q, d_model] from its boundary to after the last block."""
    entry = layout.enter(stack, tokens, start, chunk)
    streams = streams.clone()
    for layer in range(stack.n_layers):
        count = bisect_right(boundaries, layer, chunk.start, chunk.stop) - chunk.start
        if count:
            layout.cache.select(slice(chunk.start, chunk.start + count))
            streams[:count] = stack.run_block(layer, streams[:count], entry, slice(0, count))
    return streams


@torch.inference_mode()
def texts_nll(stack: BlockStack, pairs: Sequence[tuple[Tokens, Tokens]]) -> list[Tensor]:
    """NLL (nats) of each token of a text behind a prompt under the unpatched model, float64 [tokens] each, on the CPU.

    Pairs of one length are run together: nothing is padded, and a model that encodes long texts in another way sees none beside them.
    """
    found: dict[int, Tensor] = {}
    by_length = sorted(range(len(pairs)), key=lambda i: sum(map(len, pairs[i])))
    for length, members in groupby(by_length, key=lambda i: sum(map(len, pairs[i]))):
        at_once = max(1, TOKENS_AT_ONCE.get(stack.device.type, TOKENS_ON_A_GPU) // length)
        waiting = iter(members)
        while group := list(islice(waiting, at_once)):
            tokens = torch.tensor([[*pairs[i][0], *pairs[i][1]] for i in group], device=stack.device)
            *_, last = stack.boundaries(tokens, PackedCache(len(group), length))
            for line, i in enumerate(group):
                start, end = len(pairs[i][0]), length
                found[i] = nll_of(stack, last[line, start - 1 : end - 1], tokens[line, start:end]).double().cpu()
    return [found[i] for i in range(len(pairs))]


def logits_at_once(stack: BlockStack) -> int:
    """How many tokens' logits are in memory together."""
    return max(1, LOGITS_BYTES.get(stack.device.type, LOGITS_BYTES_ON_A_GPU) // (4 * stack.vocabulary))


def nll_of(stack: BlockStack, streams: Tensor, targets: Tensor) -> Tensor:
    """NLL (nats), float32 [tokens], of the tokens that the streams after the last block, [tokens, d_model], predict."""
    at_once = logits_at_once(stack)
    parts = [
        cross_entropy(stack.logits(streams[i : i + at_once, None])[:, 0], targets[i : i + at_once], reduction="none")
        for i in range(0, len(targets), at_once)
    ]
    return torch.cat(parts)

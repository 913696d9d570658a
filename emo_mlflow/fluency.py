"""How broken a completion is: its likelihood under the unpatched model, and how much it repeats itself."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from emo_mlflow.layers import BlockStack
from emo_mlflow.packing import Layout, Prefill, Tokens

LOGITS_BYTES = 256 * 2**20


def distinct_2(tokens: Sequence[int]) -> float:
    """Distinct bigrams over all bigrams (Li et al. 2016, arXiv:1510.03055); NaN below two tokens."""
    pairs = list(pairwise(tokens))
    return len(set(pairs)) / len(pairs) if pairs else float("nan")


@torch.inference_mode()
def mean_nll(stack: BlockStack, prefill: Prefill, texts: Sequence[tuple[Tokens, Tokens]], batch_size: int) -> list[float]:
    """Mean negative log-likelihood (nats) per new token under the unpatched model, for (prompt, completion) pairs.

    Each distinct pair is run once, its prompt taken from `prefill`. NaN for an empty completion.
    """
    distinct = sorted({text for text in texts if text[1]}, key=lambda text: len(text[0]))
    found: dict[tuple[Tokens, Tokens], float] = {}
    for i in range(0, len(distinct), batch_size):
        batch = distinct[i : i + batch_size]
        for text, row in zip(batch, _token_nll(stack, prefill, batch), strict=True):
            found[text] = float(row[: len(text[1])].double().mean())
    return [found.get(text, float("nan")) for text in texts]


def _token_nll(stack: BlockStack, prefill: Prefill, texts: Sequence[tuple[Tokens, Tokens]]) -> Tensor:
    """NLL per token, float32 [texts, longest completion] on the CPU; what lies past a completion's end means nothing."""
    length = max(len(completion) for _, completion in texts)
    layout = Layout(prefill, [prompt for prompt, _ in texts], length, stack.device)
    targets = torch.zeros((len(texts), length), dtype=torch.long)
    for i, (_, completion) in enumerate(texts):
        targets[i, : len(completion)] = torch.tensor(completion)
    targets = targets.to(stack.device)
    last = torch.stack([prefill.states[prefill.index[prompt]][stack.n_layers][-1:] for prompt, _ in texts])
    if length > 1:
        layout.cache.start, end = layout.end, layout.end + length - 1
        entry = stack.enter(targets[:, :-1], layout.positions(layout.end, end), layout.cache, layout.visible(end))
        hidden = entry.hidden
        for layer in range(stack.n_layers):
            hidden = stack.run_block(layer, hidden, entry, slice(0, len(texts)))
        last = torch.cat([last, hidden], dim=1)
    rows_at_once = max(1, LOGITS_BYTES // (length * stack.model.config.get_text_config().vocab_size * 4))
    parts = []
    for i in range(0, len(texts), rows_at_once):
        logits = stack.logits(last[i : i + rows_at_once])
        parts.append(cross_entropy(logits.transpose(1, 2), targets[i : i + rows_at_once], reduction="none"))
    return torch.cat(parts).cpu()

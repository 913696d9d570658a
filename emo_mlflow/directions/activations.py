"""What texts leave in the residual stream, collected over whole data sets without keeping tokens: one vector per text, or per word."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from emo_mlflow.common import progress
from emo_mlflow.directions.kept import Kept
from emo_mlflow.errors import UserError
from emo_mlflow.models.blocks import BlockStack
from emo_mlflow.types import Aggregation, FitTexts, FloatArray, Site, Tokens

BATCH = 64
TOKENS_PER_DIMENSION = 4  # of the stream, for its covariance


def batches(texts: FitTexts) -> Iterator[tuple[int, list[int]]]:
    """Which texts run together, and from which position on they are measured.

    They are of one length, so that there is no padding to be averaged.
    """
    alike: dict[tuple[int, int], list[int]] = {}
    for i, (tokens, first) in enumerate(zip(texts.tokens, texts.first, strict=True)):
        alike.setdefault((len(tokens), first), []).append(i)
    for (_, first), members in alike.items():
        for start in range(0, len(members), BATCH):
            yield first, members[start : start + BATCH]


def whole(texts: Sequence[Tokens]) -> FitTexts:
    """Texts of which all tokens are measured but the first."""
    return FitTexts(tuple(texts), (1,) * len(texts))


def own_streams(stack: BlockStack, tokens: Tensor, site: Site, first: int = 1) -> Iterator[Tensor]:
    """For each layer in turn, the stream at the site at the texts' own tokens, float32 [rows, q - first, d_model].

    The first position is always left out: whatever token it is, it is an attention sink whose norm is tens of times the others'.
    """
    for boundary, hidden in enumerate(stack.boundaries(tokens)):
        if boundary >= (site == "resid_post") and boundary < stack.n_layers + (site == "resid_post"):
            yield hidden[:, first:].float()


@torch.inference_mode()
def text_means(
    stack: BlockStack, texts: FitTexts, site: Site, aggregation: Aggregation = "mean", fingerprint: str | None = None
) -> tuple[FloatArray, FloatArray]:
    """Each text's residual stream as one vector per layer, and the mean norm of its own tokens' streams.

    `mean`: over the text's own tokens. `last`: the last token's. `attention`: the mean weighted by how much the last token, from
    which the model goes on writing, attends to each own token in that layer's block, averaged over heads and scaled to sum to 1.

    Args:
        texts: each has at least two tokens.
        fingerprint: of the model's weights, by which the result is kept in the cache folder; None to keep nothing.

    Returns:
        float32 [n_texts, n_layers, d_model] and float32 [n_texts, n_layers].

    Raises:
        UserError: for `attention` if the model does not give its attention weights.
    """
    key: list[Any] = [fingerprint, stack.device.type, str(stack.dtype), site, aggregation, [list(text) for text in texts.tokens]]
    key += [] if set(texts.first) <= {1} else [list(texts.first)]
    kept = None if fingerprint is None else Kept.of(key)
    if kept is not None and (found := kept.read((len(texts), stack.n_layers, stack.d_model))):
        return found
    means = np.zeros((len(texts), stack.n_layers, stack.d_model), np.float32)
    norms = np.zeros((len(texts), stack.n_layers), np.float32)
    for first, members in batches(texts):
        tokens = torch.tensor([texts.tokens[i] for i in members], dtype=torch.long, device=stack.device)
        weights = last_token_attention(stack.model, tokens, first) if aggregation == "attention" else None
        for layer, own in enumerate(own_streams(stack, tokens, site, first)):
            if weights is not None:
                pooled = torch.einsum("rq,rqd->rd", weights[layer], own)
            else:
                pooled = own[:, -1] if aggregation == "last" else own.mean(dim=1)
            means[members, layer] = pooled.cpu().numpy()
            norms[members, layer] = own.norm(dim=-1).mean(dim=1).cpu().numpy()
        progress.advance(progress.READING, len(members), len(texts))
    if kept is not None:
        kept.write(means, norms)
    return means, norms


def last_token_attention(model: PreTrainedModel, tokens: Tensor, first: int = 1) -> list[Tensor]:
    """Per block, the last token's attention from position `first` on, averaged over heads, float32 [rows, q - first], rows sum to 1."""
    with _eager_attention(model):
        found = model(input_ids=tokens, use_cache=False, output_attentions=True).attentions
    if found is None or any(weights is None for weights in found):
        raise UserError(
            f"{type(model).__name__} does not give its attention weights: use aggregation=mean or aggregation=last"
        )
    means = [weights[:, :, -1, first:].float().mean(dim=1) for weights in found]
    return [mean / mean.sum(dim=-1, keepdim=True) for mean in means]


@contextmanager
def _eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """Fused attention never forms its weights; only the eager implementation returns them."""
    usual = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(usual)


@torch.inference_mode()
def token_states(
    stack: BlockStack, texts: Sequence[Tokens], positions: Sequence[Sequence[int]], site: Site
) -> FloatArray:
    """The residual stream at chosen positions of each text, float32 [sum of positions, n_layers, d_model], texts in order.

    Args:
        positions: per text, positions in its tokens, none of them 0 (the document-start token).
    """
    starts = np.concatenate([[0], np.cumsum([len(chosen) for chosen in positions])]).astype(int)
    states = np.zeros((starts[-1], stack.n_layers, stack.d_model), np.float32)
    for _, members in batches(whole(texts)):
        tokens = torch.tensor([texts[i] for i in members], dtype=torch.long, device=stack.device)
        for layer, own in enumerate(own_streams(stack, tokens, site)):
            for row, i in enumerate(members):
                chosen = torch.tensor(positions[i], dtype=torch.long, device=own.device) - 1
                states[starts[i] : starts[i + 1], layer] = own[row, chosen].cpu().numpy()
    return states


@torch.inference_mode()
def deviations(stack: BlockStack, texts: FitTexts, site: Site, layers: Collection[int]) -> dict[int, FloatArray]:
    """By layer, by how much the stream at single tokens differs from its mean over them, float32 [n_tokens, d_model].

    Of texts that are spread evenly over all, and have about four times as many tokens as the stream is wide. What is not measured is left out.
    """
    total = sum(len(tokens) - first for tokens, first in zip(texts.tokens, texts.first, strict=True))
    every = max(1, total // (TOKENS_PER_DIMENSION * stack.d_model))
    some = FitTexts(texts.tokens[::every], texts.first[::every])
    found: dict[int, list[FloatArray]] = {layer: [] for layer in sorted(layers)}
    for first, members in batches(some):
        tokens = torch.tensor([some.tokens[i] for i in members], dtype=torch.long, device=stack.device)
        for layer, own in enumerate(own_streams(stack, tokens, site, first)):
            if layer in found:
                found[layer].append(own.flatten(0, 1).cpu().numpy())
            if layer == max(found):
                break
    rows = {layer: np.concatenate(parts) for layer, parts in found.items()}
    return {layer: (part - part.mean(axis=0, dtype=np.float64)).astype(np.float32) for layer, part in rows.items()}

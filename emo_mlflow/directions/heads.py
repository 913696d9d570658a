"""Which attention heads write an emotion's direction: the direct effect of every head, in one pass over the texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor, nn

from emo_mlflow.directions.activations import batches
from emo_mlflow.directions.additions import head_factors
from emo_mlflow.directions.readouts import LEVEL, Floats, Mask, contrasts, make_folds, mean_difference
from emo_mlflow.errors import UserError
from emo_mlflow.models.blocks import BlockStack
from emo_mlflow.models.families import find_output_projection, head_count, weight_by_head
from emo_mlflow.types import FitTexts, FloatArray


@dataclass(frozen=True, eq=False)
class HeadStates:
    """What texts leave in a model's heads.

    Attributes:
        heads: float32 [n_texts, n_layers, n_heads, head_dim], each head's output before the output projection, mean over the
            text's own tokens.
        stream: float32 [n_texts, d_model], the residual stream after the target block, mean over the same tokens.
    """

    heads: FloatArray
    stream: FloatArray


def head_writes(stack: BlockStack) -> tuple[Tensor, ...] | None:
    """Per block, [n_heads, head_dim, d_model]: a head's output times its part is what it adds to the stream.

    That is the output projection's weight, times what the model multiplies it by. None if heads do not add up in the stream.
    """
    factors = head_factors(stack)
    if factors is None:
        return None
    n_heads = head_count(stack.model)
    weights = (weight_by_head(find_output_projection(block), n_heads) for block in stack.blocks)
    return tuple(weight if factor == 1 else weight * factor for weight, factor in zip(weights, factors, strict=True))


@contextmanager
def _projection_inputs(stack: BlockStack) -> Iterator[dict[int, Tensor]]:
    """While open, holds the latest input of every block's output projection, [rows, q, n_heads * head_dim]."""
    seen: dict[int, Tensor] = {}

    def keep(layer: int, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen[layer] = args[0]

    handles = []
    try:
        for layer, block in enumerate(stack.blocks):
            handles.append(find_output_projection(block).register_forward_pre_hook(partial(keep, layer)))
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def head_states(stack: BlockStack, texts: FitTexts, target_layer: int) -> HeadStates:
    """Runs texts once and keeps every head's mean output and the stream after block `target_layer`.
    """
    n_heads, found = head_count(stack.model), np.zeros(0, np.float32)
    stream = np.zeros((len(texts), stack.d_model), np.float32)
    with _projection_inputs(stack) as seen:
        for first, members in batches(texts):
            tokens = torch.tensor([texts.tokens[i] for i in members], dtype=torch.long, device=stack.device)
            for boundary, hidden in enumerate(stack.boundaries(tokens)):
                if boundary == target_layer + 1:
                    stream[members] = hidden[:, first:].float().mean(dim=1).cpu().numpy()
            own = torch.stack([seen[layer][:, first:].float().mean(dim=1) for layer in range(stack.n_layers)], dim=1)
            if not len(found):
                found = np.zeros((len(texts), *own.shape[1:]), np.float32)
            found[members] = own.cpu().numpy()
    return HeadStates(found.reshape(len(texts), stack.n_layers, n_heads, -1), stream)


def direct_effects(
    states: HeadStates,
    writes: Sequence[Tensor],
    labels: Sequence[str],
    reference: str | None,
    target_layer: int,
    seed: int = 0,
) -> pd.DataFrame:
    """How much of an emotion's displacement at the target each head wrote there itself.

    A head's output is projected on the emotion's unit direction after the target block, fitted on other texts than it is projected for;
    the difference between the emotion's and the reference's texts is divided by that of the stream. So the shares of all heads up to the
    target, of the MLPs, biases and the embedding sum to 1; what a head does through later blocks is not in it.

    Args:
        writes: as `head_writes` gives them.

    Returns:
        emotion, layer, head, direct_effect with its 95% interval over texts (low, high), d (the difference over its pooled standard
        deviation), rank (1: the largest direct effect of its emotion).

    Raises:
        UserError: if an emotion's direction does not hold on texts that it was not fitted on.
    """
    parts = []
    n_layers, n_heads = states.heads.shape[1:3]
    grid = pd.MultiIndex.from_product([range(target_layer + 1), range(n_heads)], names=["layer", "head"]).to_frame(
        index=False
    )
    for emotion, used, positive, _ in contrasts(labels, reference):
        written = np.zeros((len(used), n_layers, n_heads))
        total = np.zeros(len(used))
        for fold in make_folds(positive, seed):
            stream = states.stream[used].astype(np.float64)
            difference = mean_difference(stream[fold.fit], positive[fold.fit])
            unit = difference / max(float(np.linalg.norm(difference)), 1e-300)
            aim = torch.from_numpy(unit.astype(np.float32))
            reads = np.stack([(part.float() @ aim.to(part.device)).cpu().numpy() for part in writes])
            written[fold.judge] = np.einsum("tlhd,lhd->tlh", states.heads[used][fold.judge], reads)
            total[fold.judge] = stream[fold.judge] @ unit
        scale = float(mean_difference(total[:, None], positive)[0])
        if scale <= 0:
            raise UserError(
                f"the direction of {emotion!r} after block {target_layer} does not hold on other texts: give another target_layer or more texts"
            )
        kept = written[:, : target_layer + 1].reshape(len(used), -1)
        parts.append(grid.assign(emotion=emotion, **_shares(kept, positive, scale)))
    table = pd.concat(parts, ignore_index=True)
    order = table["direct_effect"].abs().groupby(table["emotion"]).rank(ascending=False, method="first")
    return table.assign(rank=order.astype(int))


def unranked(labels: Sequence[str], reference: str | None, n_layers: int, n_heads: int) -> pd.DataFrame:
    """The table of `direct_effects` for a model whose heads have none: every head, nothing measured, ranks in the order of layers."""
    grid = pd.MultiIndex.from_product([range(n_layers), range(n_heads)], names=["layer", "head"]).to_frame(index=False)
    empty = dict.fromkeys(("direct_effect", "low", "high", "d"), np.nan)
    emotions = [emotion for emotion, _, _, _ in contrasts(labels, reference)]
    return pd.concat(
        [grid.assign(emotion=e, **empty, rank=range(1, len(grid) + 1)) for e in emotions], ignore_index=True
    )


def _shares(written: Floats, positive: Mask, scale: float) -> dict[str, Floats]:
    """Shares of columns [n_texts, n] in a difference of size `scale`, their Welch intervals, and standardised differences."""
    own, others = written[positive], written[~positive]
    difference = own.mean(axis=0) - others.mean(axis=0)
    own_error, other_error = own.var(axis=0, ddof=1) / len(own), others.var(axis=0, ddof=1) / len(others)
    error = own_error + other_error
    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = error**2 / (own_error**2 / (len(own) - 1) + other_error**2 / (len(others) - 1))
        half = stats.t.ppf((1 + LEVEL) / 2, np.where(np.isfinite(freedom), freedom, 1)) * np.sqrt(error)
        d = difference / np.sqrt((own.var(axis=0, ddof=1) + others.var(axis=0, ddof=1)) / 2)
    return {
        "direct_effect": difference / scale,
        "low": (difference - half) / scale,
        "high": (difference + half) / scale,
        "d": d,
    }

"""Training the embedded scorer: corpora and a pretrained encoder -> a network. One function, deterministic."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from emo_mlflow.evaluators.data import Corpora, EmotionTexts, PolitenessTexts
from emo_mlflow.evaluators.network import OUTPUTS, EmotionNetwork, Head, load_encoder, parameter_groups
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from emo_mlflow.types import FloatArray

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """What decides a training run, besides the data and the encoder.

    Attributes:
        max_length: tokens kept of a text.
        layer_decay: factor of the learning rate from one layer to the one below.
        max_positive_weight: cap of the loss weight sqrt(negatives / positives) of a GoEmotions label's positives.
        politeness_passes: how often an epoch goes through the politeness texts.
    """

    epochs: int = 3
    seed: int = 0
    lr: float = 1.5e-4
    batch_size: int = 64
    max_length: int = 128
    layer_decay: float = 0.9
    weight_decay: float = 0.01
    warmup: float = 0.1
    dropout: float = 0.1
    max_positive_weight: float = 10.0
    politeness_passes: int = 2


@dataclass(frozen=True, eq=False)
class Batch:
    """Padded token ids and mask, int64 [batch, length], and targets by output name."""

    ids: Tensor
    mask: Tensor
    targets: dict[str, Tensor]


def load_tokenizer(path: Path, max_length: int) -> Tokenizer:
    """The encoder's tokenizer, truncating to `max_length` and not padding."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, special tokens included."""
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]


def pad(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Rows of ids -> ids and mask, int64 [rows, longest]; padding is id 0 and masked."""
    ids = torch.zeros((len(rows), max(map(len, rows))), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids, mask


def length_batches(lengths: Sequence[int], size: int, generator: np.random.Generator) -> list[np.ndarray]:
    """All row numbers once, in random batches of nearly equal lengths: sorted within stretches of 50 batches."""
    order = generator.permutation(len(lengths))
    stretch = size * 50
    batches = []
    for start in range(0, len(order), stretch):
        part = order[start : start + stretch]
        part = part[np.argsort(np.asarray(lengths)[part], kind="stable")]
        batches += [part[i : i + size] for i in range(0, len(part), size)]
    return [batches[i] for i in generator.permutation(len(batches))]


def train(corpora: Corpora, encoder_folder: Path, recipe: Recipe) -> EmotionNetwork:
    """Fine-tunes the encoder in `encoder_folder` and the heads on the corpora's training texts.

    AdamW with a linear warm-up and decay, in bfloat16 where the processor's matrix products are. The same data, recipe,
    versions and number of threads give the same weights.
    """
    torch.manual_seed(recipe.seed)
    torch.use_deterministic_algorithms(True)
    network = EmotionNetwork(load_encoder(encoder_folder), recipe.dropout)
    tokenizer = load_tokenizer(encoder_folder / "tokenizer.json", recipe.max_length)
    weights = _positive_weights(corpora.train.emotions, recipe.max_positive_weight)
    batches = list(_schedule(corpora.train, corpora.politeness, tokenizer, recipe))
    groups = parameter_groups(network, recipe.lr, recipe.layer_decay, recipe.weight_decay)
    optimizer = torch.optim.AdamW(groups, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _warmup_then_linear(len(batches), recipe.warmup))
    network.train()
    began = time.monotonic()
    for step, batch in enumerate(batches, start=1):
        with torch.autocast("cpu", torch.bfloat16):
            outputs = network(batch.ids, batch.mask)
        loss = _loss({name: out.float() for name, out in outputs.items()}, batch.targets, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 200 == 0:
            log.info("step %d of %d, loss %.3f, %.0f s", step, len(batches), loss.item(), time.monotonic() - began)
    _remove_positive_weights(network, weights)
    return network.eval()


def predict(network: EmotionNetwork, tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, FloatArray]:
    """Logits by output name, float32 [n, width], in float32 arithmetic and in the order of the texts."""
    rows = encode(tokenizer, texts)
    order = np.argsort([len(row) for row in rows], kind="stable")
    found = {name: np.empty((len(rows), width), dtype=np.float32) for name, width in OUTPUTS.items()}
    with torch.inference_mode():
        for start in range(0, len(order), 64):
            part = order[start : start + 64]
            for name, out in network(*pad([rows[i] for i in part])).items():
                found[name][part] = out.numpy()
    return found


def _warmup_then_linear(n_steps: int, warmup: float) -> Callable[[int], float]:
    rising = max(1, math.ceil(n_steps * warmup))
    return lambda step: min((step + 1) / rising, (n_steps - step) / max(1, n_steps - rising))


def _positive_weights(emotions: FloatArray, cap: float) -> Tensor:
    positives = np.maximum(emotions.sum(axis=0), 1)
    return torch.from_numpy(np.clip(np.sqrt((len(emotions) - positives) / positives), 1, cap).astype(np.float32))


def _remove_positive_weights(network: EmotionNetwork, weights: Tensor) -> None:
    """A loss that counts positives w times inflates the odds w times; the bias takes that back."""
    with torch.no_grad():
        cast(Head, network.heads["goemotions"]).out.bias.sub_(weights.log())


def _schedule(
    emotions: EmotionTexts, politeness: PolitenessTexts, tokenizer: Tokenizer, recipe: Recipe
) -> Iterator[Batch]:
    generator = np.random.default_rng(recipe.seed)
    emotion_rows, politeness_rows = encode(tokenizer, emotions.texts), encode(tokenizer, politeness.texts)
    for _ in range(recipe.epochs):
        epoch = [
            _batch(emotion_rows, rows, {"goemotions": emotions.emotions, "sentiment": emotions.sentiments})
            for rows in length_batches([len(row) for row in emotion_rows], recipe.batch_size, generator)
        ]
        for _ in range(recipe.politeness_passes):
            epoch += [
                _batch(politeness_rows, rows, {"politeness": politeness.classes, "politeness_score": politeness.scores})
                for rows in length_batches([len(row) for row in politeness_rows], recipe.batch_size, generator)
            ]
        for i in generator.permutation(len(epoch)):
            yield epoch[i]


def _batch(encoded: list[list[int]], rows: np.ndarray, targets: dict[str, FloatArray]) -> Batch:
    ids, mask = pad([encoded[i] for i in rows])
    return Batch(ids, mask, {name: torch.from_numpy(values[rows]) for name, values in targets.items()})


def _loss(outputs: dict[str, Tensor], targets: dict[str, Tensor], weights: Tensor) -> Tensor:
    if "politeness" in targets:
        squared = F.mse_loss(outputs["politeness_score"][:, 0], targets["politeness_score"])
        return squared + 0.5 * F.cross_entropy(outputs["politeness"], targets["politeness"])
    emotion = F.binary_cross_entropy_with_logits(
        outputs["goemotions"], targets["goemotions"], pos_weight=weights, reduction="none"
    )
    # Rows of zeros, whose labels are all ambiguous, add nothing.
    sentiment = -(targets["sentiment"] * F.log_softmax(outputs["sentiment"], dim=-1)).sum(dim=-1)
    return emotion.sum(dim=-1).mean() + 0.5 * sentiment.mean()

"""Directions: fitted on prompts at the site where they are injected, drawn at random as controls, kept in files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from emo_mlflow.errors import UserError
from emo_mlflow.layers import BlockStack
from emo_mlflow.packing import Tokens
from emo_mlflow.types import Direction, FloatArray, Prompt, Site, digest

BASIS = ".basis"
FIT_BATCH = 64


@dataclass(frozen=True, eq=False)
class Fit:
    """What fitting gave.

    Attributes:
        directions: by emotion.
        residual_norms: float32 [n_layers], the mean norm of the residual stream at the site, over texts and their tokens.
        accuracy: by emotion, float32 [n_layers]: how well the projection on the direction tells the emotion's texts from the
            reference's when each text is judged by a direction and a threshold fitted without its half of the texts.
    """

    directions: dict[str, Direction]
    residual_norms: FloatArray
    accuracy: dict[str, FloatArray] = field(default_factory=dict)


@torch.inference_mode()
def text_means(stack: BlockStack, texts: Sequence[Tokens], site: Site) -> tuple[FloatArray, FloatArray]:
    """Each text's mean residual stream over its own tokens, and the mean norm of these tokens' streams.

    The first position is left out: it is the document-start token, an attention sink whose norm is tens of times the others'.
    Texts of one length run together, so there is no padding to be averaged.

    Args:
        texts: token ids, the document-start token first; each has at least two.

    Returns:
        float32 [n_texts, n_layers, d_model] and float32 [n_texts, n_layers].
    """
    means = np.zeros((len(texts), stack.n_layers, stack.d_model), np.float32)
    norms = np.zeros((len(texts), stack.n_layers), np.float32)
    by_length: dict[int, list[int]] = {}
    for i, tokens in enumerate(texts):
        by_length.setdefault(len(tokens), []).append(i)
    offset = 1 if site == "resid_post" else 0
    for members in by_length.values():
        for start in range(0, len(members), FIT_BATCH):
            batch = members[start : start + FIT_BATCH]
            tokens = torch.tensor([texts[i] for i in batch], dtype=torch.long, device=stack.device)
            for boundary, hidden in enumerate(stack.boundaries(tokens)):
                layer = boundary - offset
                if 0 <= layer < stack.n_layers:
                    own = hidden[:, 1:].float()
                    means[batch, layer] = own.mean(dim=1).cpu().numpy()
                    norms[batch, layer] = own.norm(dim=-1).mean(dim=1).cpu().numpy()
    return means, norms


def mean_differences(means: FloatArray, labels: Sequence[str], reference: str | None) -> dict[str, FloatArray]:
    """Per emotion, the mean over its texts minus the mean over the reference's, float32 [n_layers, d_model].

    Without a reference emotion, the reference is all other emotions' texts together.
    """
    names = np.array(labels)
    found = {}
    for emotion in dict.fromkeys(labels):
        if emotion == reference:
            continue
        others = names == reference if reference is not None else names != emotion
        difference = means[names == emotion].mean(axis=0, dtype=np.float64) - means[others].mean(axis=0, dtype=np.float64)
        found[emotion] = difference.astype(np.float32)
    return found


def held_out_accuracy(means: FloatArray, labels: Sequence[str], reference: str | None) -> dict[str, FloatArray]:
    """Balanced accuracy of the direction as a linear read-out, by two-fold cross-fitting, float32 [n_layers] per emotion.

    A text is called the emotion's if its projection is past the midpoint between the two means of the other fold.
    """
    names = np.array(labels)
    fold = np.zeros(len(names), int)
    for name in set(labels):
        members = np.flatnonzero(names == name)
        fold[members] = np.arange(len(members)) % 2
    found = {}
    for emotion in dict.fromkeys(labels):
        if emotion == reference:
            continue
        positive = names == emotion
        negative = names == reference if reference is not None else ~positive
        correct = np.zeros((len(names), means.shape[1]), bool)
        for held in (0, 1):
            rest, here = fold != held, fold == held
            high, low = means[positive & rest].mean(axis=0), means[negative & rest].mean(axis=0)
            projection = np.einsum("tld,ld->tl", means[here], high - low)
            threshold = ((high + low) / 2 * (high - low)).sum(axis=-1)
            correct[here] = (projection > threshold) == positive[here][:, None]
        found[emotion] = ((correct[positive].mean(axis=0) + correct[negative].mean(axis=0)) / 2).astype(np.float32)
    return found


def fit_directions(
    stack: BlockStack, prompts: Sequence[Prompt], tokens: Sequence[Tokens], site: Site, reference: str | None
) -> Fit:
    """Mean-difference directions of every emotion among `prompts`, at every layer.

    Args:
        tokens: of each prompt, the document-start token first.

    Raises:
        UserError: if a text has no token of its own.
    """
    for prompt, ids in zip(prompts, tokens, strict=True):
        if len(ids) < 2:
            raise UserError(f"the text {prompt.text!r} is too short to fit a direction on: it has no token after the first")
    means, norms = text_means(stack, tokens, site)
    labels = [prompt.emotion for prompt in prompts]
    directions = {
        emotion: Direction(emotion, site, vectors) for emotion, vectors in mean_differences(means, labels, reference).items()
    }
    return Fit(directions, norms.mean(axis=0), held_out_accuracy(means, labels, reference))


def random_control(
    vector: FloatArray, basis: FloatArray | None, *, seed: int, emotion: str, layer: int, draw: int
) -> tuple[FloatArray, FloatArray | None]:
    """A direction drawn uniformly, with the norm (and the rank) of the one that it controls for.

    The draw depends on the arguments alone and is equal on every machine: numpy's legacy generator is frozen. It does not depend
    on alpha, so that a control's dose-response is that of one direction.

    Args:
        vector: float32 [d_model].
        basis: float32 [k, d_model] or None.
    """
    key = int(digest(["random control", seed, emotion, layer, draw], 8), 16)
    rank = 1 if basis is None else len(basis)
    normal = np.random.RandomState(key).standard_normal((len(vector), rank))
    orthonormal, triangular = np.linalg.qr(normal)
    drawn = (orthonormal * np.sign(np.diag(triangular))).T
    if basis is None:
        return (drawn[0] * float(np.linalg.norm(vector.astype(np.float64)))).astype(np.float32), None
    coordinates = basis.astype(np.float64) @ vector
    return (coordinates @ drawn).astype(np.float32), drawn.astype(np.float32)


def save_directions(path: Path, directions: Mapping[str, Direction], metadata: Mapping[str, str]) -> None:
    """Writes one float32 tensor [n_layers, d_model] per emotion, and `<emotion>.basis` [n_layers, k, d_model] for subspaces."""
    tensors = {name: np.ascontiguousarray(direction.vectors) for name, direction in directions.items()}
    for name, direction in directions.items():
        if direction.basis is not None:
            tensors[name + BASIS] = np.ascontiguousarray(direction.basis)
    sites = {direction.site for direction in directions.values()}
    save_file(tensors, str(path), metadata={"site": sites.pop() if len(sites) == 1 else "", **metadata})


def load_directions(path: Path) -> tuple[dict[str, Direction], dict[str, str]]:
    """What `save_directions` wrote: directions by emotion, and the metadata.

    Raises:
        UserError: if the file is missing, is not safetensors, or does not say at which site it was measured.
    """
    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - a safetensors handle is no dict
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read directions from {path}: {error}; give a safetensors file or the id of a run") from None
    site = metadata.get("site")
    if site not in ("resid_pre", "resid_post"):
        raise UserError(f"{path} does not say at which site its directions were measured (metadata 'site')")
    found: dict[str, Direction] = {}
    for name, vectors in tensors.items():
        if name.endswith(BASIS) and name.removesuffix(BASIS) in tensors:
            continue
        basis = tensors.get(name + BASIS)
        if vectors.ndim != 2 or (basis is not None and (basis.ndim != 3 or basis.shape[::2] != vectors.shape)):
            raise UserError(f"{path}: direction {name!r} has shape {vectors.shape}; expected [n_layers, d_model]")
        found[name] = Direction(name, site, vectors.astype(np.float32), None if basis is None else basis.astype(np.float32))
    return found, metadata


def check_directions(
    directions: Mapping[str, Direction], metadata: Mapping[str, str], *, emotions: Sequence[str], site: Site,
    shape: tuple[int, int], fingerprint: str,
) -> None:
    """Refuses directions that do not belong to the model and the sweep.

    Args:
        shape: the model's (n_layers, d_model).
        fingerprint: of the model's weights; compared where the file names one.
    """
    if missing := [emotion for emotion in emotions if emotion not in directions]:
        raise UserError(f"no direction for {', '.join(missing)}; there are {', '.join(directions) or 'none'}")
    for name in emotions:
        direction = directions[name]
        if direction.vectors.shape != shape:
            raise UserError(
                f"direction {name!r} has shape {direction.vectors.shape}, but the model has {shape[0]} layers of width {shape[1]}: "
                "take directions fitted on this model"
            )
        if direction.site != site:
            raise UserError(f"direction {name!r} was measured at {direction.site}: run with site={direction.site}")
        if not np.isfinite(direction.vectors).all():
            raise UserError(f"direction {name!r} has values that are not finite: fit it again")
    made_on = metadata.get("model_fingerprint")
    if made_on and made_on != fingerprint:
        raise UserError(
            f"these directions were fitted on another model's weights (fingerprint {made_on[:12]}, this model {fingerprint[:12]})"
        )


def norms_from_metadata(metadata: Mapping[str, str]) -> FloatArray | None:
    """The residual norms that were measured with the directions, float32 [n_layers], where the file has them."""
    text = metadata.get("residual_norms")
    return None if text is None else np.array(json.loads(text), np.float32)

"""Directions: fitted on prompts at the site where they are injected, drawn at random as controls, kept in files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from emo_mlflow.activations import text_means
from emo_mlflow.errors import UserError
from emo_mlflow.layers import BlockStack
from emo_mlflow.names import check_name, shown
from emo_mlflow.packing import Tokens
from emo_mlflow.readout import Floats, contrasts, judge, mean_difference, method_named, parse_direction
from emo_mlflow.subspaces import check_components, fit_subspaces
from emo_mlflow.types import Aggregation, Direction, FloatArray, Prompt, Site, digest

BASIS = ".basis"


@dataclass(frozen=True, eq=False)
class Fit:
    """What fitting gave.

    Attributes:
        directions: by emotion.
        residual_norms: float32 [n_layers], the mean norm of the residual stream at the site, over texts and their tokens.
        accuracy: by emotion, float32 [n_layers]: how well the projection on the direction tells the emotion's texts from the
            reference's when each text is judged by a direction and a threshold fitted without its fold of the texts.
    """

    directions: dict[str, Direction]
    residual_norms: FloatArray
    accuracy: dict[str, FloatArray] = field(default_factory=dict)


def choose_direction(
    choice: str, means: FloatArray, labels: Sequence[str], reference: str | None, site: Site
) -> dict[str, Direction]:
    """Directions of every emotion at every layer, as `choice` says.

    All but the mean difference itself are scaled to its norm, and turned so that the emotion's texts project higher: methods differ
    in where they point and not in dose. A subspace keeps the mean difference, whose coordinates in it are what is injected.

    Args:
        choice: `mean_diff`, `pc1` (`pc2`, ...), `lda`, `logistic` or `subspace:K`.
        means: float32 [n_texts, n_layers, d_model].

    Raises:
        UserError: for an unknown choice, more components than texts, or an emotion with fewer than two texts.
    """
    name, rank = parse_direction(choice)
    component = rank or (int(name[2:]) if name.startswith("pc") else 1)
    check_components(component, labels, reference, means.shape[2])
    bases = fit_subspaces(means, labels, reference, rank).bases if rank else {}
    method = mean_difference if rank else method_named(name)
    found: dict[str, Direction] = {}
    for emotion, used, positive in contrasts(labels, reference):
        layers = [means[used, layer].astype(np.float64) for layer in range(means.shape[1])]
        vectors = np.stack([_like_difference(method(x, positive), mean_difference(x, positive)) for x in layers])
        found[emotion] = Direction(emotion, site, vectors.astype(np.float32), bases.get(emotion))
    return found


def _like_difference(vector: Floats, difference: Floats) -> Floats:
    norm = float(np.linalg.norm(vector))
    sign = -1.0 if vector @ difference < 0 else 1.0
    return vector * (sign * float(np.linalg.norm(difference)) / norm) if norm else vector


def fit_directions(
    stack: BlockStack,
    prompts: Sequence[Prompt],
    tokens: Sequence[Tokens],
    site: Site,
    reference: str | None,
    direction: str = "mean_diff",
    aggregation: Aggregation = "mean",
) -> Fit:
    """Directions of every emotion among `prompts`, at every layer, and how well they read held-out texts.

    Args:
        tokens: of each prompt, the document-start token first.
        direction: as in `choose_direction`.

    Raises:
        UserError: if a text has no token of its own, or `direction` asks for what the texts cannot give.
    """
    for prompt, ids in zip(prompts, tokens, strict=True):
        if len(ids) < 2:
            raise UserError(
                f"the text {prompt.text!r} is too short to fit a direction on: it has no token after the first"
            )
    means, norms = text_means(stack, tokens, site, aggregation)
    labels = [prompt.emotion for prompt in prompts]
    name, rank = parse_direction(direction)
    judged = judge(means, labels, reference, ["mean_diff" if rank else name])
    return Fit(
        choose_direction(direction, means, labels, reference, site),
        norms.mean(axis=0),
        {
            str(emotion): rows["accuracy"].to_numpy(np.float32)
            for emotion, rows in judged.groupby("emotion", sort=False)
        },
    )


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
    except (OSError, SafetensorError, TypeError, ValueError) as error:  # a type that numpy lacks, such as bfloat16
        raise UserError(
            f"cannot read directions from {path}: {shown(str(error))}; give a safetensors file or the id of a run"
        ) from None
    site = metadata.get("site")
    if site not in ("resid_pre", "resid_post"):
        raise UserError(f"{path} does not say at which site its directions were measured (metadata 'site')")
    if not tensors:
        raise UserError(f"{path} holds no direction")
    found: dict[str, Direction] = {}
    for name, vectors in tensors.items():
        if name.endswith(BASIS) and name.removesuffix(BASIS) in tensors:
            continue
        basis = tensors.get(name + BASIS)
        if vectors.ndim != 2 or (basis is not None and (basis.ndim != 3 or basis.shape[::2] != vectors.shape)):
            raise UserError(f"{path}: direction {name!r} has shape {vectors.shape}; expected [n_layers, d_model]")
        found[check_name(name, f"{path}: direction")] = Direction(
            name, site, vectors.astype(np.float32), None if basis is None else basis.astype(np.float32)
        )
    return found, metadata


def check_directions(
    directions: Mapping[str, Direction],
    metadata: Mapping[str, str],
    *,
    emotions: Sequence[str],
    site: Site,
    shape: tuple[int, int],
    fingerprint: str,
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
        if not all(np.isfinite(part).all() for part in (direction.vectors, direction.basis) if part is not None):
            raise UserError(f"direction {name!r} has values that are not finite: fit it again")
    made_on = metadata.get("model_fingerprint")
    if made_on and made_on != fingerprint:
        raise UserError(
            f"these directions were fitted on another model's weights (fingerprint {made_on[:12]}, this model {fingerprint[:12]})"
        )


def norms_from_metadata(metadata: Mapping[str, str], n_layers: int) -> FloatArray | None:
    """The residual norms that were measured with the directions, float32 [n_layers], where the file has them.

    Raises:
        UserError: if they are no norms, or not of so many layers.
    """
    text = metadata.get("residual_norms")
    if text is None:
        return None
    try:
        norms = np.array(json.loads(text), np.float32)
    except (ValueError, TypeError, RecursionError, OverflowError):
        norms = np.array([], np.float32)
    if norms.shape != (n_layers,) or not (np.isfinite(norms) & (norms >= 0)).all():
        raise UserError(
            f"the directions' residual_norms are not {n_layers} numbers of at least 0: fit the directions again"
        )
    return norms

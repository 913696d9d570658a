"""Directions in safetensors files: written, read and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from emo_mlflow.common.names import check_name, shown
from emo_mlflow.errors import UserError
from emo_mlflow.types import Direction, FloatArray, Site

BASIS = ".basis"


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

"""Directions in other tools' files: llama.cpp's control vectors, lm-evaluation-harness's `steered` model, plain safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from emo_mlflow.common.names import check_name
from emo_mlflow.directions.files import load_directions, save_directions
from emo_mlflow.errors import UserError, reason_of
from emo_mlflow.interchange.control_vectors import UNREADABLE, read_gguf, vectors_by_block, write_gguf
from emo_mlflow.interchange.lm_eval import write_lm_eval
from emo_mlflow.models.families import blocks_below_base_of, identity_of
from emo_mlflow.models.loading import check, load
from emo_mlflow.models.names import resolve
from emo_mlflow.settings.layers import resolve_layers
from emo_mlflow.types import Direction, FloatArray, VectorFormat


@dataclass(frozen=True)
class ExportSettings:
    """What is exported and as what.

    Attributes:
        directions: a directions.safetensors file.
        emotion: whose direction; may be left out where the file has one only.
        layers: as in a sweep; other tools inject at all of the file's layers at once, so one is the usual choice.
        alpha: what the vectors are multiplied by.
        model_type: the `model_type` of the model's configuration; None to take it from the file.
    """

    directions: Path
    out: Path
    format: VectorFormat = "gguf"
    emotion: str | None = None
    layers: str = "all"
    alpha: float = 1.0
    model_type: str | None = None


@dataclass(frozen=True)
class ImportSettings:
    """What is imported.

    Attributes:
        source: a GGUF control vector or a safetensors file.
        emotion: the name that the direction gets; a safetensors file that holds named directions keeps its names.
        model: whose directions they are; needed where the file does not say how many layers there are.
    """

    source: Path
    out: Path
    emotion: str = "imported"
    model: str | None = None


def export_vectors(settings: ExportSettings) -> str:
    """Writes one emotion's direction for another tool; returns a line that says what was written and how it is used.

    Both other formats add to the output of a block, so a direction measured before block L goes to block L - 1: the same place.
    Both add at every position, the prompt's too: the sweep's scope `all`. A subspace is written as the vector that `add` injects.

    Raises:
        UserError: for an emotion or a layer that is not there, or a layer that the format cannot express.
    """
    directions, metadata = load_directions(settings.directions)
    emotion = _emotion(settings.emotion, directions)
    direction = directions[emotion]
    layers = resolve_layers(settings.layers, len(direction.vectors))
    vectors = {layer: injected(direction, layer) * np.float32(settings.alpha) for layer in layers}
    for layer, vector in vectors.items():
        if not np.isfinite(vector).all() or not vector.any():
            raise UserError(
                f"the direction of {emotion!r} at layer {layer} is zero or not finite: leave this layer out"
            )
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    if settings.format == "safetensors":
        kept = np.zeros_like(direction.vectors)
        for layer, vector in vectors.items():
            kept[layer] = vector
        save_directions(settings.out, {emotion: Direction(emotion, direction.site, kept)}, metadata)
        return f"Wrote {settings.out}: sweep it with directions={settings.out}"
    model_type = settings.model_type or metadata.get("model_type")
    if not model_type:
        raise UserError(
            f"{settings.directions} does not say what kind of model it is for: give --model-type, such as llama or gpt2"
        )
    shift = direction.site == "resid_pre"
    blocks = {layer - shift: vector for layer, vector in vectors.items()}
    if settings.format == "gguf":
        write_gguf(settings.out, blocks, model_type, len(direction.vectors))
        return f"Wrote {settings.out}: llama-cli --control-vector {settings.out}"
    known = metadata.get("blocks") if settings.model_type is None else None
    write_lm_eval(settings.out, blocks, known or blocks_below_base_of(model_type))
    return f"Wrote {settings.out}: lm_eval --model steered --model_args pretrained=...,steer_path={settings.out}"


def _emotion(name: str | None, directions: Mapping[str, Direction]) -> str:
    if name is None and len(directions) == 1:
        return next(iter(directions))
    if name is None or name not in directions:
        raise UserError(f"emotion={name} is not in the file: give one of {', '.join(directions)}")
    return name


def injected(direction: Direction, layer: int) -> FloatArray:
    """What alpha = 1 adds at a layer, float32 [d_model]."""
    vector = direction.vectors[layer]
    if direction.basis is None:
        return vector
    basis = direction.basis[layer].astype(np.float64)
    return np.asarray(basis.T @ (basis @ vector), np.float32)


def import_vectors(settings: ImportSettings) -> str:
    """Reads a control vector or a safetensors file and writes directions that a sweep takes; returns a line that says how.

    A vector per block is what is added to that block's output, so the directions are at `resid_post`. Layers that the file lacks are
    zero, which a sweep refuses to inject.

    Raises:
        UserError: if the file cannot be read, is for a model of another shape, or leaves open how many layers there are.
    """
    source = settings.source
    check_name(settings.emotion, "emotion")
    if source.suffix != ".gguf" and "site" in _read_safetensors(source)[1]:
        directions, metadata = load_directions(source)
    else:
        blocks, n_layers = read_gguf(source) if source.suffix == ".gguf" else (read_block_tensors(source), None)
        metadata = {}
        if settings.model is not None:
            n_layers, metadata = _for_model(settings.model, blocks, source)
        if n_layers is None:
            raise UserError(f"{source.name} does not say how many layers its model has: give --model")
        vectors = np.zeros((n_layers, len(next(iter(blocks.values())))), np.float32)
        for block, vector in blocks.items():
            vectors[block] = vector
        directions = {settings.emotion: Direction(settings.emotion, "resid_post", vectors)}
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    save_directions(settings.out, directions, metadata)
    site = next(iter(directions.values())).site
    return f"Wrote {settings.out}: emo-mlflow sweep --directions {settings.out} --site {site}"


def _for_model(name: str, blocks: Mapping[int, FloatArray], source: Path) -> tuple[int, dict[str, str]]:
    """The model's number of layers, and what identifies it; vectors that cannot be for it are refused."""
    spec = resolve(name)
    check(spec, dtype=torch.bfloat16)
    loaded = load(spec, torch.device("cpu"), torch.bfloat16)
    width, last = len(next(iter(blocks.values()))), max(blocks)
    if width != loaded.d_model or last >= loaded.n_layers:
        raise UserError(
            f"{source.name} has vectors of width {width} up to block {last}, but {name} has {loaded.n_layers} blocks "
            f"of width {loaded.d_model}: give the model that they were made for"
        )
    return loaded.n_layers, {"model_fingerprint": loaded.fingerprint, **identity_of(loaded.model)}


def read_block_tensors(path: Path) -> dict[int, FloatArray]:
    """Vectors by block from a safetensors file with a tensor [d_model] per block whose name ends in the block's number.

    Raises:
        UserError: if it cannot be read, or has other tensors.
    """
    return vectors_by_block(path, _read_safetensors(path)[0])


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 - a safetensors handle is no dict
    except (SafetensorError, *UNREADABLE) as error:
        raise UserError(
            f"cannot read {path} as safetensors: {reason_of(error)}; give a .gguf or .safetensors file"
        ) from None

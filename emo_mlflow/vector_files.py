"""Directions in other tools' files: llama.cpp's control vectors, lm-evaluation-harness's `steered` model, plain safetensors."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from emo_mlflow.config import resolve_layers
from emo_mlflow.directions import load_directions, save_directions
from emo_mlflow.errors import UserError
from emo_mlflow.models import check, load, resolve
from emo_mlflow.names import check_name
from emo_mlflow.types import Direction, FloatArray, VectorFormat

ARCHITECTURE = "controlvector"
N_LAYERS = "emo_mlflow.n_layers"  # a key of our own, which other readers pass over
# Where a family's blocks hang below `model.base_model`, by model_type; all others have `layers`.
HOOKPOINTS = {"gpt2": "h", "gpt_neo": "h", "gptj": "h", "opt": "decoder.layers", "gemma3_text": "model.layers"}
UNREADABLE = (ValueError, OSError, IndexError, KeyError, OverflowError, TypeError, MemoryError, struct.error)


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
    write_lm_eval(settings.out, blocks, model_type)
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


def write_gguf(path: Path, blocks: Mapping[int, FloatArray], model_type: str, n_layers: int) -> None:
    """Writes a control vector as repeng does: tensor `direction.N`, float32 [d_model], is added to the output of block N.

    Raises:
        UserError: for a block before 1: llama.cpp refuses `direction.0`.
    """
    if min(blocks) < 1:
        raise UserError(
            f"a control vector cannot act before the output of block 1, and this one would at block {min(blocks)}: "
            "export from layer 2 on (from layer 1 on if measured at resid_post), as in layers=2-11"
        )
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    writer.add_string(f"{ARCHITECTURE}.model_hint", model_type)
    writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(blocks))
    writer.add_uint32(N_LAYERS, n_layers)
    for block, vector in blocks.items():
        writer.add_tensor(f"direction.{block}", np.ascontiguousarray(vector, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_lm_eval(path: Path, blocks: Mapping[int, FloatArray], model_type: str) -> None:
    """Writes what `lm_eval --model steered` reads as `steer_path`: per hookpoint, a vector that is added to a block's output.

    Raises:
        UserError: for a name that it would not read, or a place before block 0, which has no hookpoint.
    """
    if path.suffix not in (".pt", ".pth"):
        raise UserError(f"out={str(path)!r}: lm-evaluation-harness reads files that end in .pt")
    if min(blocks) < 0:
        raise UserError("the place before block 0 is no block's output: export from layer 1 on, as in layers=1-11")
    prefix = HOOKPOINTS.get(model_type, "layers")
    config: dict[str, dict[str, Any]] = {
        f"{prefix}.{block}": {
            "steering_vector": torch.from_numpy(np.array(vector)),
            "steering_coefficient": 1.0,
            "action": "add",
            "bias": None,
            "head_index": None,
        }
        for block, vector in blocks.items()
    }
    torch.save(config, path)


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
    return loaded.n_layers, {
        "model_fingerprint": loaded.fingerprint,
        "model_type": loaded.model.config.get_text_config().model_type,
    }


def read_gguf(path: Path) -> tuple[dict[int, FloatArray], int | None]:
    """A control vector's vectors by block, and how many blocks the model has, where the file says so.

    Raises:
        UserError: if it is no GGUF file, no control vector, or a damaged one.
    """
    try:
        reader = gguf.GGUFReader(path)
        field, count = reader.get_field("general.architecture"), reader.get_field(N_LAYERS)
        architecture = str(field.contents()) if field else "none"
        n_layers = int(count.contents()) if count else None
        tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    except UNREADABLE as error:
        raise UserError(f"cannot read {path} as GGUF: {_reason(error)}") from None
    if architecture != ARCHITECTURE:
        raise UserError(f"{path} is no control vector: its architecture is {architecture!r}, not {ARCHITECTURE!r}")
    blocks = _blocks(path, {name: values for name, values in tensors.items() if name.startswith("direction.")})
    if n_layers is not None and max(blocks) >= n_layers:
        raise UserError(f"{path} has a vector for block {max(blocks)} of a model with {n_layers}: it is damaged")
    return blocks, n_layers


def read_block_tensors(path: Path) -> dict[int, FloatArray]:
    """Vectors by block from a safetensors file with a tensor [d_model] per block whose name ends in the block's number.

    Raises:
        UserError: if it cannot be read, or has other tensors.
    """
    return _blocks(path, _read_safetensors(path)[0])


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 - a safetensors handle is no dict
    except (SafetensorError, *UNREADABLE) as error:
        raise UserError(
            f"cannot read {path} as safetensors: {_reason(error)}; give a .gguf or .safetensors file"
        ) from None


def _blocks(path: Path, tensors: Mapping[str, np.ndarray]) -> dict[int, FloatArray]:
    found: dict[int, FloatArray] = {}
    for name, values in tensors.items():
        number = re.search(r"(?:^|\.)(\d{1,4})$", name)
        if number is None or int(number[1]) in found:
            raise UserError(f"{path}: tensor {name!r} does not name one block: names such as direction.12 are expected")
        if (
            values.ndim != 1
            or values.dtype not in (np.float32, np.float16, np.float64)
            or not np.isfinite(values).all()
        ):
            raise UserError(
                f"{path}: {name!r} is not one vector of finite floats but {values.dtype} {list(values.shape)}"
            )
        found[int(number[1])] = values.astype(np.float32)
    widths = {len(vector) for vector in found.values()}
    if len(widths) != 1:
        raise UserError(
            f"{path} has {'no vectors' if not widths else f'vectors of different widths: {sorted(widths)}'}"
        )
    return found


def _reason(error: BaseException) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__

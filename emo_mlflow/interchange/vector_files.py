"""Directions in other tools' files: llama.cpp's control vectors, lm-evaluation-harness's `steered` model, plain safetensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from emo_mlflow.common.names import check_name
from emo_mlflow.directions.files import load_directions, save_directions
from emo_mlflow.errors import UserError, reason_of
from emo_mlflow.interchange.control_vectors import UNREADABLE, block_of, read_gguf, vectors_by_block, write_gguf
from emo_mlflow.interchange.lm_eval import write_lm_eval
from emo_mlflow.models.families import blocks_below_base_of
from emo_mlflow.models.identity import identity
from emo_mlflow.models.loading import check, load
from emo_mlflow.models.names import resolve
from emo_mlflow.settings.layers import resolve_layers
from emo_mlflow.sweeping.layer_scores import best_layer
from emo_mlflow.types import Direction, FloatArray, VectorFormat


@dataclass(frozen=True)
class ExportSettings:
    """What is exported and as what.

    Attributes:
        directions: a directions.safetensors file.
        emotion: whose direction; may be left out where the file has one only.
        layers: as in a sweep; None for the one that the file says is best (all of them as safetensors), because other tools inject
            at all of a file's layers at once.
        alpha: what the vectors are multiplied by.
        model_type: the `model_type` of the model's configuration; None to take it from the file.
        named: what the person calls the file, such as a run's id.
    """

    directions: Path
    out: Path
    format: VectorFormat = "gguf"
    emotion: str | None = None
    layers: str | None = None
    alpha: float = 1.0
    model_type: str | None = None
    named: str = ""


@dataclass(frozen=True)
class ImportSettings:
    """What is imported.

    Attributes:
        source: a GGUF control vector or a safetensors file.
        emotion: the name that the direction gets; a safetensors file that holds named directions keeps its names.
        model: whose directions they are; needed where the file does not say how many layers there are.
        block: to whose output the file's one vector is added, where its name does not say so.
    """

    source: Path
    out: Path
    emotion: str = "imported"
    model: str | None = None
    block: int | None = None


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
    layers = resolve_layers(_layers(settings, metadata, direction), len(direction.vectors))
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
            f"{settings.named or settings.directions} does not say what kind of model it is for: give --model-type, such as llama or gpt2"
        )
    shift = direction.site == "resid_pre"
    blocks = {layer - shift: vector for layer, vector in vectors.items()}
    if settings.format == "gguf":
        write_gguf(settings.out, blocks, model_type, len(direction.vectors))
        return f"{_wrote(settings, layers, direction)}: {_llama_command(settings.out, metadata)}"
    known = metadata.get("blocks") if settings.model_type is None else None
    write_lm_eval(settings.out, blocks, known or blocks_below_base_of(model_type))
    return f"{_wrote(settings, layers, direction)}: lm_eval --model steered --model_args pretrained=...,steer_path={settings.out}"


def _layers(settings: ExportSettings, metadata: Mapping[str, str], direction: Direction) -> str:
    """The layers asked for, or the best one that the format can express."""
    if settings.layers is not None or settings.format == "safetensors":
        return settings.layers or "all"
    first = (direction.site == "resid_pre") + (settings.format == "gguf")  # llama.cpp acts after block 1 or later, lm-eval after 0
    best = best_layer(metadata, direction.emotion, first)
    if best is None:
        raise UserError(
            f"{settings.named or settings.directions} does not say which layer of {direction.emotion!r} is best: give --layers, such as "
            f"--layers {len(direction.vectors) // 2}; other tools inject at all of a file's layers at once"
        )
    return str(best)


def _wrote(settings: ExportSettings, layers: Sequence[int], direction: Direction) -> str:
    """What was written, the layer too where it was chosen."""
    chosen = f" (layer {layers[0]}, the best of {direction.emotion})" if settings.layers is None else ""
    return f"Wrote {settings.out}{chosen}"


def _llama_command(path: Path, metadata: Mapping[str, str]) -> str:
    """How llama.cpp continues a text as a sweep does: the same tokens, document-start token first, greedily."""
    name = metadata.get("model_name", "MODEL")
    model = name if name.endswith(".gguf") else f"{name}.gguf"
    start = metadata.get("document_start", "") if metadata.get("document_start_by") == "text" else ""
    command = f"llama-completion -m {quote(model)} --control-vector {quote(str(path))} -no-cnv --temp 0 -p {quote(start + 'I told her that')}"
    return f"{command} ({model}: the model as GGUF{', whose texts begin with ' + start if start else ''})"


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
        blocks: Mapping[int, FloatArray]
        blocks, n_layers = read_gguf(source) if source.suffix == ".gguf" else read_block_tensors(source, settings.block)
        metadata = {}
        if settings.model is not None:
            blocks, n_layers, metadata = _for_model(settings.model, blocks, n_layers, source)
        if n_layers is None:
            raise UserError(f"{source.name} does not say how many layers its model has: give --model")
        vectors = np.zeros((n_layers, len(next(iter(blocks.values())))), np.float32)
        for block, vector in blocks.items():
            vectors[block] = vector
        directions = {settings.emotion: Direction(settings.emotion, "resid_post", vectors)}
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    save_directions(settings.out, directions, metadata)
    norms, unit = _norms(directions)
    site = next(iter(directions.values())).site
    return f"Wrote {settings.out} ({norms}): emo-mlflow sweep --directions {settings.out} --site {site}{unit}"


def _norms(directions: Mapping[str, Direction]) -> tuple[str, str]:
    """How long the vectors are, and the option that gives vectors of length 1 a strength that does something."""
    vectors = np.concatenate([direction.vectors for direction in directions.values()])
    sizes = np.linalg.norm(vectors.astype(np.float64), axis=1)
    sizes = sizes[sizes > 0]
    if not len(sizes):
        return "every vector is zero", ""
    low, high = sizes.min(), sizes.max()
    said = f"norm {low:.3g}" if high - low < 0.005 * high else f"norms {low:.3g} to {high:.3g}"
    return said, " --alpha-unit residual" if abs(low - 1) < 0.01 and abs(high - 1) < 0.01 else ""


def _for_model(
    name: str, blocks: Mapping[int, FloatArray], n_rows: int | None, source: Path
) -> tuple[Mapping[int, FloatArray], int, dict[str, str]]:
    """The vectors by block, the model's number of layers, and what identifies it; vectors that cannot be for it are refused.

    Args:
        n_rows: of a tensor of all layers; with one more than the model has, its first row is of the embeddings, as in `hidden_states`.
    """
    spec = resolve(name)
    check(spec, dtype=torch.bfloat16)
    loaded = load(spec, torch.device("cpu"), torch.bfloat16)
    if n_rows == loaded.n_layers + 1 and source.suffix != ".gguf":
        blocks = {block - 1: vector for block, vector in blocks.items() if block}
    width, last = len(next(iter(blocks.values()))), max(blocks)
    if width != loaded.d_model or last >= loaded.n_layers:
        raise UserError(
            f"{source.name} has vectors of width {width} up to block {last}, but {name} has {loaded.n_layers} blocks "
            f"of width {loaded.d_model}: give the model that they were made for"
        )
    return blocks, loaded.n_layers, {"model_fingerprint": loaded.fingerprint, **identity(loaded)}


def read_block_tensors(path: Path, block: int | None = None) -> tuple[dict[int, FloatArray], int | None]:
    """Vectors by block from a safetensors file, and the number of layers where it says that.

    The file has a tensor [d_model] per block, whose name has the block's number (`layers.11`, `layer_11_vector`), one without a
    number for the block that is given, or one tensor [n_layers, d_model], whose rows are added to the blocks' outputs.

    Raises:
        UserError: if it cannot be read, or has other tensors.
    """
    tensors = {name: values[0] if values.ndim == 2 and len(values) == 1 else values for name, values in _read_safetensors(path)[0].items()}
    ((name, values), *others) = tensors.items() or [("none", np.zeros(0))]
    if not others and values.ndim == 2 and block is None and block_of(name) is None:
        return vectors_by_block(path, {str(row): vector for row, vector in enumerate(values)}), len(values)
    if block is not None:
        if others or values.ndim != 1:
            raise UserError(f"{path} has {', '.join(list(tensors)[:5])}: a block can be given for one vector [d_model] only")
        tensors = {str(block): values}
    return vectors_by_block(path, tensors), None


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors by name, what NumPy lacks (bfloat16, float8) as float32, and the metadata."""
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - a safetensors handle is no dict
    except (SafetensorError, *UNREADABLE) as error:
        raise UserError(
            f"cannot read {path} as safetensors: {reason_of(error)}; give a .gguf or .safetensors file"
        ) from None
    return {name: (x.float() if x.is_floating_point() and x.dtype != torch.float64 else x).numpy() for name, x in tensors.items()}, metadata

"""llama.cpp's and repeng's control vectors, as GGUF files."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

from emo_mlflow.errors import UserError, reason_of
from emo_mlflow.types import FloatArray

ARCHITECTURE = "controlvector"
N_LAYERS = "emo_mlflow.n_layers"  # a key of our own, which other readers pass over
UNREADABLE = (ValueError, OSError, IndexError, KeyError, OverflowError, TypeError, MemoryError, struct.error)


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
        raise UserError(f"cannot read {path} as GGUF: {reason_of(error)}") from None
    if architecture != ARCHITECTURE:
        raise UserError(f"{path} is no control vector: its architecture is {architecture!r}, not {ARCHITECTURE!r}")
    blocks = vectors_by_block(path, {name: values for name, values in tensors.items() if name.startswith("direction.")})
    if n_layers is not None and max(blocks) >= n_layers:
        raise UserError(f"{path} has a vector for block {max(blocks)} of a model with {n_layers}: it is damaged")
    return blocks, n_layers


def block_of(name: str) -> int | None:
    """The number behind a word for block or layer, or else the only one, or the one that stands last after a dot."""
    numbers = re.findall(r"\d+", name)
    found = (
        re.findall(r"(?:layers?|blocks?|blk|h|l|direction)[._ -]?(\d+)(?!\d)", name, re.IGNORECASE)
        or (numbers if len(numbers) == 1 else [])
        or re.findall(r"\.(\d+)$", name)
    )
    return int(found[0]) if len(set(found)) == 1 and len(found[0]) <= 4 else None


def vectors_by_block(path: Path, tensors: Mapping[str, np.ndarray]) -> dict[int, FloatArray]:
    """Tensors by the block that their names have: `direction.12`, `layers.12.mlp`, `layer_12_vector`.

    Raises:
        UserError: if one does not name a block, or is no vector of finite floats, or widths differ.
    """
    found: dict[int, FloatArray] = {}
    for name, values in tensors.items():
        block = block_of(name)
        if block is None or block in found:
            raise UserError(
                f"{path}: tensor {name!r} does not name one block: names such as direction.12 or layer_12_vector are expected; "
                "of a file with one vector, --block says it"
            )
        if (
            values.ndim != 1
            or values.dtype not in (np.float32, np.float16, np.float64)
            or not np.isfinite(values).all()
        ):
            raise UserError(
                f"{path}: {name!r} is not one vector of finite floats but {values.dtype} {list(values.shape)}"
            )
        found[block] = values.astype(np.float32)
    widths = {len(vector) for vector in found.values()}
    if len(widths) != 1:
        raise UserError(
            f"{path} has {'no vectors' if not widths else f'vectors of different widths: {sorted(widths)}'}"
        )
    return found

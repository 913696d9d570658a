"""A folder of safetensors: which files, how large, and a digest of what is in them. Nothing else is read as weights."""

from __future__ import annotations

import hashlib
import json
import math
import mmap
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emo_mlflow.errors import UserError

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
OTHER_FORMATS = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf")
FULL_DIGEST_BYTES = 2 * 2**30
SAMPLES, SAMPLE_BYTES = 16, 4096


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: `stop - start` bytes of `path` from byte `start` on."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def weight_names(index: str | None) -> list[str]:
    """Names of the files that hold the weights; `index` is the text of the sharding index, if there is one.

    Raises:
        UserError: if the index is broken, or names files elsewhere or of another format.
    """
    if index is None:
        return [SINGLE]
    try:
        names = sorted({str(name) for name in json.loads(index)["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{INDEX} is not a sharding index: download the model again") from None
    if wrong := [name for name in names if "/" in name or "\\" in name or not name.endswith(".safetensors")]:
        raise UserError(f"{INDEX} names {wrong[0]!r}: only safetensors files beside it are read")
    return names


def chosen_files(there: Container[str], index: Callable[[], str]) -> list[str]:
    """Names of the files that transformers reads weights from: the single file where there is one, whatever index lies beside it.

    Args:
        there: names of the files that there are.
        index: gives the text of the sharding index, if that is one of them.

    Raises:
        UserError: as `weight_names`.
    """
    return weight_names(index() if SINGLE not in there and INDEX in there else None)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, as transformers chooses them.

    Raises:
        UserError: if there are none, or some are missing.
    """
    there = {path.name for path in folder.glob("*") if path.is_file()}
    names = chosen_files(there, lambda: (folder / INDEX).read_text(encoding="utf-8"))
    if missing := [name for name in names if not (folder / name).is_file()]:
        others = sorted(path.name for path in folder.glob("*") if path.suffix in OTHER_FORMATS)
        save = f"give model={folder / others[0]}" if others and others[0].endswith(".gguf") else "save it again with safe_serialization=True"
        found = f" (but {others[0]}, which is not: {save})" if others else ""
        raise UserError(f"{folder} has no {missing[0]}: only safetensors weights are read{found}")
    return [folder / name for name in names]


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file, without reading them.

    Raises:
        UserError: if the file is not safetensors, or is cut off.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length < size else None
        if header is None:
            raise ValueError
        tensors = {name: _tensor(path, item, 8 + length) for name, item in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path} is not a safetensors file: download or save the model again") from None
    if max((tensor.stop for tensor in tensors.values()), default=0) != size:
        raise UserError(f"{path} is cut off: download or save the model again")
    return tensors


def _tensor(path: Path, item: dict[str, Any], first: int) -> StoredTensor:
    (start, stop), shape = item["data_offsets"], tuple(item["shape"])
    if not all(type(number) is int and number >= 0 for number in (start, stop, *shape)) or start > stop:
        raise ValueError
    return StoredTensor(path, str(item["dtype"]), shape, first + start, first + stop)


def read_headers(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a model folder, by name."""
    return {name: tensor for path in weight_files(folder) for name, tensor in read_header(path).items()}


def count_parameters(tensors: dict[str, StoredTensor]) -> int:
    """Numbers that the tensors hold, together."""
    return sum(math.prod(tensor.shape) for tensor in tensors.values())


def weights_digest(tensors: dict[str, StoredTensor]) -> str:
    """Hex sha256 over names, types, shapes and content, however the tensors are spread over files.

    Up to 2 GiB all content counts; past that, of each tensor the length and 16 evenly spaced blocks of 4 KiB, which a
    fine-tuned copy cannot share.
    """
    full = sum(tensor.stop - tensor.start for tensor in tensors.values()) <= FULL_DIGEST_BYTES
    total = hashlib.sha256()
    opened: dict[Path, mmap.mmap] = {}
    try:
        for name in sorted(tensors):
            tensor = tensors[name]
            if tensor.path not in opened:
                with tensor.path.open("rb") as file:
                    opened[tensor.path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            total.update(json.dumps([name, tensor.dtype, tensor.shape, full]).encode())
            with memoryview(opened[tensor.path]) as view:
                for start, stop in [(tensor.start, tensor.stop)] if full else _samples(tensor):
                    total.update(view[start:stop])
    finally:
        for mapped in opened.values():
            mapped.close()
    return total.hexdigest()


def _samples(tensor: StoredTensor) -> list[tuple[int, int]]:
    size = tensor.stop - tensor.start
    starts = [tensor.start + i * max(0, size - SAMPLE_BYTES) // (SAMPLES - 1) for i in range(SAMPLES)]
    return [(start, min(start + SAMPLE_BYTES, tensor.stop)) for start in starts]

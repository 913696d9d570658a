"""A GGUF file as a model: dequantised once into a folder of the cache that is named by the file's hash, like any model's folder after that.

transformers reads the weights and the configuration. What it leaves out without a word, tensors and rotary factors among them, is looked
for, and the file refused. The tokenizer is made in `gguf_vocabulary`.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from filelock import FileLock
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, PreTrainedModel

from emo_mlflow.common.cache_folder import cache_folder
from emo_mlflow.common.files import sha256
from emo_mlflow.common.names import shown
from emo_mlflow.errors import UserError, reason_of
from emo_mlflow.models.gguf_vocabulary import make_tokenizer

FACTS = "gguf.json"
FACTORS = "rope_freqs.weight"
LLAMA_3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
WIDEST = 8  # bytes of float32 for a byte of a file of 4 bits a weight
_log = logging.getLogger(__name__)


def gguf_folder(path: Path) -> Path:
    """The model's folder, made first if need be.

    Raises:
        UserError: if the file is no GGUF model that is read, or there is no room.
    """
    digest = sha256(path)
    folder = cache_folder() / "models" / f"gguf-{digest[:16]}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to the cache folder {folder.parent}: {error.strerror}; set EMO_MLFLOW_CACHE to another") from None
    with FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            _check_room(path, folder.parent)
            _log.warning("reading %s and keeping its weights as float32, once", path.name)
            with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
                made = Path(temporary) / "model"
                made.mkdir()
                _convert(path, made, digest)
                os.replace(made, folder)
    return folder


def quantisation_of(folder: Path) -> str | None:
    """How the weights of a folder were quantised in the GGUF file that it was made from, such as `Q4_K 108, F32 73`; None for any other."""
    try:
        return str(json.loads((folder / FACTS).read_text(encoding="utf-8"))["quantisation"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _check_room(path: Path, folder: Path) -> None:
    needed, free = path.stat().st_size * WIDEST, shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{path.name} takes up to {needed / 2**30:.1f} GiB as float32 in {folder}, which has {free / 2**30:.1f}: "
            "make room, or set EMO_MLFLOW_CACHE to another folder"
        )


def _convert(path: Path, folder: Path, digest: str) -> None:
    try:
        reader = GGUFReader(path)
    except Exception as error:  # the reader takes whatever it finds for numbers and names
        raise UserError(f"{path} is not a GGUF file that can be read: {reason_of(error)}") from None
    tokenizer = make_tokenizer(reader, path)
    model = read_model(path, reader)
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    _name_ends(reader, folder)
    facts = {"file": path.name, "sha256": digest, "quantisation": tensor_types(reader)}
    (folder / FACTS).write_text(json.dumps(facts, indent=1), encoding="utf-8")


def tensor_types(reader: GGUFReader) -> str:
    """How many tensors are stored in which type, the most frequent first."""
    return ", ".join(f"{name} {n}" for name, n in Counter(tensor.tensor_type.name for tensor in reader.tensors).most_common())


def read_model(path: Path, reader: GGUFReader) -> PreTrainedModel:
    """The model with all its weights as float32.

    Raises:
        UserError: if transformers does not read it, or not all of it.
    """
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, trust_remote_code=False, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # a file can be wrong in as many ways as its reader has lines
        raise UserError(f"{path}: transformers does not read this GGUF model: {reason_of(error)}") from None
    model, found = loaded
    missing = [name for name in found["missing_keys"] if not (model.config.tie_word_embeddings and name == "lm_head.weight")]
    if missing:
        raise UserError(f"{path}: {len(missing)} tensors of {type(model).__name__} are not in the file, such as {missing[0]}")
    read = sum(parameter.numel() for parameter in model.parameters()) + _take_rotary_factors(reader, model)
    there = sum(int(tensor.n_elements) for tensor in reader.tensors)
    if read != there:
        odd = [tensor.name for tensor in reader.tensors if tensor.name.startswith("rope")]
        raise UserError(
            f"{path}: the file has {there} weights and transformers reads {read} of them"
            f"{f', without {shown(odd[0])}' if odd else ''}, so this model would be another: give its folder of safetensors"
        )
    model.config.use_cache = True
    return cast(PreTrainedModel, model)


def _take_rotary_factors(reader: GGUFReader, model: PreTrainedModel) -> int:
    """Puts Llama 3.1's scaling of rotary frequencies into the configuration, which the file holds as numbers; returns how many it took."""
    values = next((np.asarray(tensor.data, np.float64).ravel() for tensor in reader.tensors if tensor.name == FACTORS), np.zeros(0))
    base = getattr(model.config, "rope_theta", None)
    if not len(values) or base is None:
        return 0
    scaling = {**LLAMA_3, "factor": float(values.max())}
    turns = LLAMA_3["original_max_position_embeddings"] / (2 * np.pi * base ** (np.arange(len(values)) / len(values)))
    low, high = LLAMA_3["low_freq_factor"], LLAMA_3["high_freq_factor"]
    kept = np.clip((turns - low) / (high - low), 0, 1)
    if not np.allclose(values, 1 / ((1 - kept) / scaling["factor"] + kept), rtol=1e-3):
        return 0
    model.config.rope_scaling = {"rope_type": "llama3", **scaling}
    return len(values)


def _name_ends(reader: GGUFReader, folder: Path) -> None:
    """Writes the tokens that end a text into generation_config.json: a GGUF file names the end of a turn apart from that of a document."""
    named = (reader.fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    ends = sorted({int(field.contents()) for field in named if field is not None})
    path = folder / "generation_config.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**content, **({"eos_token_id": ends} if ends else {})}), encoding="utf-8")

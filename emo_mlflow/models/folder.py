"""A model's folder: its configuration, read and doubted. Code that it brings along, or asks for, is never run."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

from emo_mlflow.common.names import shown
from emo_mlflow.errors import UserError

DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
CONFIG, GENERATION_CONFIG, TOKENIZER_CONFIG = "config.json", "generation_config.json", "tokenizer_config.json"
ADAPTER = "adapter_config.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "vocab.txt", "tekken.json")
ATTENTION = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
_NEVER = (
    "trust_remote_code is off, and there is no way to turn it on. Use a model of a type that transformers has itself"
)


def read_config(folder: Path, known: Container[str]) -> dict[str, Any]:
    """The content of config.json, if a model can be made of it without code of its own.

    Args:
        known: the model types for which transformers has the class itself.

    Raises:
        UserError: if there is none, or as `refuse_code`.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        config = None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise UserError(f"{folder} is not a model's folder: it needs config.json, safetensors weights and a tokenizer")
    refuse_code(folder, config, known)
    _refuse_other_weights(folder, config)
    return config


def _refuse_other_weights(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuses weights that are not the plain numbers of the safetensors files in the folder."""
    if quantised := config.get("quantization_config"):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise UserError(
            f"{folder}: its weights are quantised ({shown(method)}, says {CONFIG}), and only plain float32, bfloat16 and float16 ones are read: "
            "give the model that it was made from, or a GGUF file of it"
        )
    if "transformers_weights" in config:
        raise UserError(f"{folder}: {CONFIG} names a weights file of its own (transformers_weights): remove that entry, or save the model again")
    if (folder / ADAPTER).is_file():
        raise UserError(f"{folder} holds an adapter ({ADAPTER}) beside its weights: merge it (merge_and_unload of peft), or take it out")


def read_generation_config(folder: Path) -> dict[str, Any]:
    """The content of generation_config.json, which is empty where there is none, or none that can be read."""
    try:
        content = json.loads((folder / GENERATION_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def check_depth(folder: Path, config: Mapping[str, Any], n_tensors: int) -> None:
    """Refuses a configuration with more blocks than there are tensors: transformers would build them all before it misses any."""
    for key, value in config.items():
        if key in DEPTHS and isinstance(value, int) and value > n_tensors:
            raise UserError(
                f"{folder}: config.json says {key}={value}, but its weights are {n_tensors} tensors: they do not belong together"
            )
        if isinstance(value, dict):
            check_depth(folder, value, n_tensors)


def depth_of(config: Mapping[str, Any]) -> int | None:
    """How many blocks a configuration says, its text model's where it has one; None if it does not say."""
    text = config.get("text_config")
    named = [part[key] for part in (text if isinstance(text, dict) else {}, config) for key in DEPTHS if key in part]
    return next((number for number in named if isinstance(number, int)), None)


def refuse_code(folder: Path, config: Mapping[str, Any], known: Container[str]) -> None:
    """Refuses a model that cannot be loaded without code from its folder or from a hub.

    Args:
        config: the content of its config.json.
        known: the model types for which transformers has the class itself; what such a folder brings along is ignored.

    Raises:
        UserError: if its type is another and it names code of its own (`auto_map`), or if it asks for an attention kernel from a hub.
    """
    if "auto_map" in config and config.get("model_type") not in known:
        raise UserError(
            f"{folder}: {CONFIG} names code of its own (auto_map) for its type {shown(config.get('model_type'))}: {_NEVER}"
        )
    for value in _attention(config):
        if "/" in value:
            raise UserError(
                f"{folder}: {CONFIG} asks for attention code from a hub ({shown(value)}), which is not run: remove that entry"
            )


def why_no_tokenizer(folder: Path, reason: str) -> str:
    """The reason why a tokenizer cannot be loaded; where it is code of its own, that this is never run."""
    if not any((folder / name).is_file() for name in TOKENIZERS):
        return f"it has none of {', '.join(TOKENIZERS)}: copy them from the model that it was made from"
    for name in (TOKENIZER_CONFIG, CONFIG):
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(content, dict) and content.get("auto_map"):
            return f"{name} names code of its own (auto_map): {_NEVER}"
    return reason


def _attention(config: Mapping[str, Any], depth: int = 0) -> Iterator[str]:
    """What a configuration, or a part of it, says of the attention's implementation."""
    for key, value in config.items():
        if key in ATTENTION:
            yield from (
                item for item in (value.values() if isinstance(value, dict) else [value]) if isinstance(item, str)
            )
        elif isinstance(value, dict) and depth < 5:
            yield from _attention(value, depth + 1)

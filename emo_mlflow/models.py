"""A name becomes a model: the embedded one, one on the hub, or a local folder; what cannot work is refused early."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.activations import NewGELUActivation
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from emo_mlflow import embedded_model
from emo_mlflow.errors import UserError
from emo_mlflow.hub import check_hub, hub_folder
from emo_mlflow.machine import free_memory
from emo_mlflow.model_folder import check_depth, read_config, why_no_tokenizer
from emo_mlflow.names import check_revision, shown
from emo_mlflow.types import digest
from emo_mlflow.weights import count_parameters, read_headers, weights_digest

T = TypeVar("T")

EMBEDDED = "smollm2-135m"
HUB_MODELS = {
    "gpt2_small": "openai-community/gpt2",
    "gpt2": "openai-community/gpt2",
    "pythia-160m": "EleutherAI/pythia-160m",
    "gpt-neo-125m": "EleutherAI/gpt-neo-125m",
    "llama3_8b": "meta-llama/Meta-Llama-3-8B",
    # The pretrained model, not the instruction-tuned -it: sweeps continue plain text, which is no chat turn.
    "gemma3_12b": "google/gemma-3-12b-pt",
    "qwen3_8b": "Qwen/Qwen3-8B",
}
CHOICES = (
    f"choose {EMBEDDED} (needs no hub), {', '.join(name for name in HUB_MODELS if name != 'gpt2')}, "
    "a hub id such as owner/name@revision, or a local folder"
)

END_OF_DOCUMENT = "<|endoftext|>"
CHAT_TURN = "<|im_start|>"  # a BOS in name only: in front of a text it promises a chat's role
CPU = torch.device("cpu")
KNOWN = frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)  # model types that transformers has a class for
MEMORY_FACTOR = 1.1  # the weights, and what is needed while they are read
SPARE_MEMORY = 300 * 2**20
# What differs between copies of one model without changing what it computes.
INCIDENTAL = ("transformers_version", "_name_or_path", "torch_dtype", "dtype", "use_cache")


@dataclass(frozen=True)
class ModelSpec:
    """Which model: where from (`embedded`, `hub` or `folder`), its hub id or path, and its hub revision."""

    name: str
    source: Literal["embedded", "hub", "folder"]
    location: str
    revision: str | None = None


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model ready to run: in evaluation mode, without gradients, on its device.

    Attributes:
        spec: as asked for; a hub model's revision is the commit that was loaded.
        tokenizer: call it with add_special_tokens=False; the engine itself puts `document_start_id` in front.
        document_start_id: the token that precedes a document in the model's training texts.
        eos_ids: every token that ends a text; also the document-start token, since who writes it begins another text.
        fingerprint: identifies the configuration and the weights, equal on every machine (see `weights_digest`).
        context: the most tokens that a text may have.
    """

    spec: ModelSpec
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    document_start_id: int
    eos_ids: tuple[int, ...]
    fingerprint: str
    n_layers: int
    d_model: int
    context: int


def resolve(name: str, revision: str | None = None) -> ModelSpec:
    """Reads a model's name; looks at no more than whether a folder is there.

    Raises:
        UserError: if it is no known name, hub id or folder, or its revision is given twice or where there are none.
    """
    folder = Path(os.path.expanduser(name))
    if name not in ("", EMBEDDED, *HUB_MODELS) and folder.is_dir():
        return _unpinned(ModelSpec(name, "folder", str(folder.resolve())), revision)
    base, at, pinned = name.partition("@")
    if at and (not pinned or revision not in (None, pinned)):
        raise UserError(f"model {name!r}: give one revision, as in {base or 'owner/name'}@main")
    revision = pinned or revision
    if revision:
        check_revision(revision, f"model {name!r}:")
    if base == EMBEDDED:
        return _unpinned(ModelSpec(base, "embedded", embedded_model.REQUIREMENT), revision)
    if base in HUB_MODELS:
        return ModelSpec(base, "hub", HUB_MODELS[base], revision)
    if name.startswith((".", "~", os.sep)):
        raise UserError(f"model {name!r}: there is no such folder; {CHOICES}")
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", base, re.ASCII):
        return ModelSpec(base, "hub", base, revision)
    close = difflib.get_close_matches(base.lower(), [EMBEDDED, *HUB_MODELS], n=1)
    raise UserError(f"unknown model {name!r}{f', did you mean {close[0]}?' if close else ''}; {CHOICES}")


def _unpinned(spec: ModelSpec, revision: str | None) -> ModelSpec:
    if revision:
        raise UserError(f"model {spec.name!r} has no revisions: leave out {revision!r}")
    return spec


def pick_device(name: str) -> torch.device:
    """`auto` (CUDA, else Apple's MPS, else the CPU), or a device by name.

    Raises:
        UserError: if there is no such device here.
    """
    cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    available = [*cuda, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]
    if name == "auto":
        return torch.device(available[0])
    if name in available or (name == "cuda" and cuda):
        return torch.device("cuda:0" if name == "cuda" else name)
    raise UserError(f"device {name!r} is not available here: choose auto or {', '.join(available)}")


def check(spec: ModelSpec, device: torch.device = CPU, dtype: torch.dtype = torch.float32) -> None:
    """Refuses what cannot be loaded, before anything is: no weights to be had, wrong format, not enough memory.

    Answers within ten seconds, except that the embedded model is fetched here (93 MB) if it is not in the cache.

    Raises:
        UserError: saying what is wrong and what the choices are.
    """
    if spec.source == "embedded":
        _check_memory(spec, embedded_model.N_PARAMETERS, device, dtype)
        embedded_model.fetch()
    elif spec.source == "hub":
        n_parameters = _with_choices(check_hub, spec)
        if n_parameters is not None:
            _check_memory(spec, n_parameters, device, dtype)
    else:
        config = read_config(Path(spec.location), KNOWN)
        tensors = read_headers(Path(spec.location))
        check_depth(Path(spec.location), config, len(tensors))
        _check_memory(spec, count_parameters(tensors), device, dtype)


def load(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    """Reads a model and its tokenizer, downloading or converting them first where that is needed.

    Raises:
        UserError: as `check`; or if the folder holds no causal language model, or weights do not fit its configuration.
    """
    if spec.source == "embedded":
        folder = embedded_model.prepare()
    elif spec.source == "hub":
        folder = _with_choices(hub_folder, spec)
        spec = replace(spec, revision=folder.name)
    else:
        folder = Path(spec.location)
    config = read_config(folder, KNOWN)
    tensors = read_headers(folder)
    check_depth(folder, config, len(tensors))
    _check_memory(spec, count_parameters(tensors), device, dtype)
    model = _load_model(folder, device, dtype)
    tokenizer = _load_tokenizer(folder)
    text_config = model.config.get_text_config()
    start = document_start_id(tokenizer)
    if max(len(tokenizer), start + 1) > text_config.vocab_size:
        raise UserError(
            f"{folder}: its tokenizer has {len(tokenizer)} tokens and its model {text_config.vocab_size}: "
            "they do not belong together"
        )
    return LoadedModel(
        spec=spec,
        model=model,
        tokenizer=tokenizer,
        document_start_id=start,
        eos_ids=_eos_ids(model, tokenizer, start),
        fingerprint=digest([{k: v for k, v in config.items() if k not in INCIDENTAL}, weights_digest(tensors)]),
        n_layers=text_config.num_hidden_layers,
        d_model=text_config.hidden_size,
        context=text_config.max_position_embeddings,
    )


def document_start_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token in front of a document in training.

    BOS; where there is none, or it opens a chat turn, `<|endoftext|>`; where there is none, EOS.

    Raises:
        UserError: if the tokenizer has none of these.
    """
    vocabulary = tokenizer.get_vocab()
    bos = tokenizer.bos_token
    for token in (None if bos == CHAT_TURN else bos, END_OF_DOCUMENT, tokenizer.eos_token):
        if token in vocabulary:
            return int(vocabulary[token])
    raise UserError(
        f"{tokenizer.name_or_path}: the tokenizer has no BOS, {END_OF_DOCUMENT} or EOS token to start a document with"
    )


def _eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, start: int) -> tuple[int, ...]:
    ids = {start}
    for named in (model.generation_config, model.config, tokenizer):
        value = getattr(named, "eos_token_id", None)
        found = value if isinstance(value, list) else [] if value is None else [value]
        if wrong := [item for item in found if type(item) is not int]:
            raise UserError(f"{tokenizer.name_or_path}: eos_token_id {shown(wrong[0])} is no token's number")
        ids.update(found)
    return tuple(sorted(ids))


def _with_choices(ask_hub: Callable[[str, str | None], T], spec: ModelSpec) -> T:
    try:
        return ask_hub(spec.location, spec.revision)
    except UserError as error:
        raise UserError(f"model {spec.name!r}: {error}; {CHOICES}") from None


def _check_memory(spec: ModelSpec, n_parameters: int, device: torch.device, dtype: torch.dtype) -> None:
    needed = int(n_parameters * dtype.itemsize * MEMORY_FACTOR) + SPARE_MEMORY
    if needed > (free := free_memory(device)):
        smaller = "dtype=bfloat16, " if dtype.itemsize > 2 else ""
        as_type = str(dtype).removeprefix("torch.")
        raise UserError(
            f"model {spec.name!r} needs about {needed / 2**30:.1f} GiB of memory as {as_type}; "
            f"{device} has {free / 2**30:.1f} free: use {smaller}another device or a smaller model; {CHOICES}"
        )


def _load_model(folder: Path, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            device_map={"": device},
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # a configuration can be wrong in as many ways as its reader has lines
        raise UserError(f"{folder} cannot be loaded as a causal language model: {_one_line(error)}") from None
    model, found = loaded
    if missing := sorted(found["missing_keys"]):
        raise UserError(f"{folder}: {len(missing)} tensors of {type(model).__name__} are missing, such as {missing[0]}")
    fuse_activations(model)
    return cast(PreTrainedModel, model.eval().requires_grad_(False))


def fuse_activations(model: nn.Module) -> None:
    """GPT-2's and GPT-Neo's activation in one pass over memory instead of eight: the same function, decoding 1.2 times as fast."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, NewGELUActivation):
                setattr(parent, name, nn.GELU(approximate="tanh"))


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the tokenizers library raises plain Exception
        reason = why_no_tokenizer(folder, _one_line(error))
        raise UserError(f"{folder} has no tokenizer that can be loaded: {reason}") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__

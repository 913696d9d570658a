"""A name becomes a model: the embedded one, one on the hub, or a local folder; what cannot work is refused early."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.activations import NewGELUActivation
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from emo_mlflow.common.machine import free_memory
from emo_mlflow.errors import UserError, reason_of
from emo_mlflow.models import embedded as embedded_model
from emo_mlflow.models.families import another_family, context_of
from emo_mlflow.models.folder import check_depth, read_config, read_generation_config, why_no_tokenizer
from emo_mlflow.models.gguf_files import gguf_folder, quantisation_of
from emo_mlflow.models.hub import check_hub, hub_folder
from emo_mlflow.models.names import CHOICES, ModelSpec
from emo_mlflow.models.special_tokens import absent_ids, document_start_id, end_ids
from emo_mlflow.models.weights import count_parameters, read_headers, weights_digest
from emo_mlflow.types import digest

T = TypeVar("T")
CPU = torch.device("cpu")
KNOWN = frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)  # model types that transformers has a class for
MEMORY_FACTOR = 1.1  # the weights, and what is needed while they are read
SPARE_MEMORY = 300 * 2**20
# What differs between copies of one model without changing what it computes.
INCIDENTAL = ("transformers_version", "_name_or_path", "torch_dtype", "dtype", "use_cache")


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model ready to run: in evaluation mode, without gradients, on its device.

    Attributes:
        spec: as asked for; a hub model's revision is the commit that was loaded.
        tokenizer: call it with add_special_tokens=False; the engine itself puts `document_start_id` in front.
        document_start_id: the token that precedes a document in the model's training texts; None where the tokenizer has no such token.
        eos_ids: every token that ends a text; also the document-start token, since who writes it begins another text.
        absent_ids: rows of the vocabulary that are no token of the tokenizer, such as those that pad it to a round number.
        quantisation: how the weights were stored in the GGUF file that they are from; None for any other model.
        fingerprint: identifies the configuration and the weights, equal on every machine (see `weights_digest`).
        context: the most tokens that a text may have.
    """

    spec: ModelSpec
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    document_start_id: int | None
    eos_ids: tuple[int, ...]
    absent_ids: tuple[int, ...]
    quantisation: str | None
    fingerprint: str
    n_layers: int
    d_model: int
    context: int

    @property
    def quantised(self) -> dict[str, str]:
        """The quantisation as what is known of the model, if there is one."""
        return {} if self.quantisation is None else {"quantisation": self.quantisation}


def check(spec: ModelSpec, device: torch.device = CPU, dtype: torch.dtype = torch.float32) -> None:
    """Refuses what cannot be loaded, before anything is: no weights to be had, wrong format, not enough memory.

    Answers within ten seconds, and fetches nothing.

    Raises:
        UserError: saying what is wrong and what the choices are.
    """
    if spec.source == "embedded":
        _check_memory(spec, embedded_model.N_PARAMETERS, device, dtype)
    elif spec.source == "hub":
        n_parameters = _with_choices(check_hub, spec)
        if n_parameters is not None:
            _check_memory(spec, n_parameters, device, dtype)
    elif spec.source == "folder":
        config = read_config(Path(spec.location), KNOWN)
        tensors = read_headers(Path(spec.location))
        check_depth(Path(spec.location), config, len(tensors))
        _check_memory(spec, count_parameters(tensors), device, dtype)


def load(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    """Reads a model and its tokenizer, downloading or converting them first where that is needed.

    Raises:
        UserError: as `check`; or if the folder holds no causal language model, or weights do not fit its configuration.
    """
    if spec.source == "hub":
        read_config(_folder(spec, weights=False), KNOWN)  # what cannot be read is not downloaded
    folder = _folder(spec)
    if spec.source == "hub":
        spec = replace(spec, revision=folder.name)
    config = read_config(folder, KNOWN)
    tensors = read_headers(folder)
    check_depth(folder, config, len(tensors))
    _check_memory(spec, count_parameters(tensors), device, dtype)
    tokenizer = _load_tokenizer(folder)
    model = _load_model(folder, device, dtype)
    text_config = model.config.get_text_config()
    shape = [getattr(text_config, name, None) for name in ("vocab_size", "num_hidden_layers", "hidden_size")]
    if not all(isinstance(number, int) for number in shape):
        raise UserError(f"{folder}: {type(model).__name__} does not say how deep and wide it is; {another_family()}")
    start = document_start_id(tokenizer)
    if start is not None and start >= text_config.vocab_size:
        raise UserError(
            f"{folder}: a document starts with token {start} of its tokenizer, and its model has {text_config.vocab_size}: "
            "they do not belong together"
        )
    return LoadedModel(
        spec=spec,
        model=model,
        tokenizer=tokenizer,
        document_start_id=start,
        eos_ids=end_ids(model, tokenizer, start),
        quantisation=embedded_model.QUANTISATION if spec.source == "embedded" else quantisation_of(folder),
        absent_ids=absent_ids(tokenizer, text_config.vocab_size),
        fingerprint=digest([{k: v for k, v in config.items() if k not in INCIDENTAL}, weights_digest(tensors)]),
        n_layers=text_config.num_hidden_layers,
        d_model=text_config.hidden_size,
        context=context_of(text_config),
    )


def load_tokenizer(spec: ModelSpec) -> tuple[PreTrainedTokenizerBase, frozenset[int]]:
    """A model's tokenizer, and the tokens that its configuration ends texts with; no weights are read or downloaded.

    Raises:
        UserError: if there is no tokenizer to be had, or it needs code of its own.
    """
    folder = _folder(spec, weights=False)
    config = read_config(folder, KNOWN)
    tokenizer = _load_tokenizer(folder)
    named = [tokenizer.eos_token_id, config.get("eos_token_id"), read_generation_config(folder).get("eos_token_id")]
    found = [item for value in named for item in (value if isinstance(value, list) else [value])]
    return tokenizer, frozenset(item for item in found if type(item) is int)


def _folder(spec: ModelSpec, weights: bool = True) -> Path:
    if spec.source == "embedded":
        return embedded_model.prepare()
    if spec.source == "gguf":
        return gguf_folder(Path(spec.location))
    if spec.source == "hub":
        return _with_choices(lambda repo, revision: hub_folder(repo, revision, weights), spec)
    return Path(spec.location)


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
        raise UserError(f"{folder} cannot be loaded as a causal language model: {reason_of(error)}") from None
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
        reason = why_no_tokenizer(folder, reason_of(error))
        raise UserError(f"{folder} has no tokenizer that can be loaded: {reason}") from None


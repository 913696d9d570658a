"""Names to models: what is resolved, refused and loaded, for every family; folders are made by the tests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import CONTEXT, FAMILIES, save_tiny, tiny_tokenizer
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from emo_mlflow.common.machine import pick_device
from emo_mlflow.errors import UserError
from emo_mlflow.models import embedded as embedded_model
from emo_mlflow.models.blocks import BlockStack
from emo_mlflow.models.loading import check, load
from emo_mlflow.models.names import ModelSpec, resolve
from emo_mlflow.models.special_tokens import document_start_id
from emo_mlflow.models.weights import SINGLE

CPU = torch.device("cpu")
ODD_TEXTS = ["", " ", "the  and\n\n\tthe ", "naïve café 你好 🙂‍↔️", "I'm 1234.5%", "\u200b\ufeff\x00", "<b>\\n</b>"]


def folder_spec(folder: Path) -> ModelSpec:
    return ModelSpec(str(folder), "folder", str(folder))


@pytest.mark.parametrize(
    ("name", "source", "location", "revision"),
    [
        ("smollm2-135m", "embedded", embedded_model.REQUIREMENT, None),
        ("gpt2_small", "hub", "openai-community/gpt2", None),
        ("gpt2", "hub", "openai-community/gpt2", None),
        ("pythia-160m@step1000", "hub", "EleutherAI/pythia-160m", "step1000"),
        ("gpt-neo-125m", "hub", "EleutherAI/gpt-neo-125m", None),
        ("llama3_8b", "hub", "meta-llama/Meta-Llama-3-8B", None),
        ("gemma3_12b", "hub", "google/gemma-3-12b-pt", None),
        ("llama3_8b-it", "hub", "meta-llama/Meta-Llama-3-8B-Instruct", None),
        ("gemma3_12b-it@main", "hub", "google/gemma-3-12b-it", "main"),
        ("qwen3_8b-it", "hub", "Qwen/Qwen3-8B", None),
        ("qwen3_8b", "hub", "Qwen/Qwen3-8B", None),
        ("owner/name@v1.0", "hub", "owner/name", "v1.0"),
    ],
)
def test_names(name, source, location, revision):
    """The study's names, hub ids and revisions."""
    spec = resolve(name)
    assert (spec.source, spec.location, spec.revision) == (source, location, revision)
    assert spec.name == name.partition("@")[0]


def test_folders_come_before_hub_ids_but_not_before_known_names(tmp_path, monkeypatch):
    """`owner/name` that exists here is that folder; a folder called gpt2 must not replace the study's model unseen."""
    monkeypatch.chdir(tmp_path)
    for name in ("owner/name", "gpt2", "smollm2-135m", "odd@name"):
        (tmp_path / name).mkdir(parents=True)
    assert resolve("owner/name") == ModelSpec("owner/name", "folder", str(tmp_path / "owner" / "name"))
    assert resolve("odd@name").source == "folder"
    assert resolve("gpt2").source == "hub"
    assert resolve("smollm2-135m").source == "embedded"
    assert resolve("./gpt2").source == "folder"


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("gpt-neo-125", None, "did you mean gpt-neo-125m?.*choose smollm2-135m .*a hub id .*a local folder"),
        ("", None, "unknown model ''"),
        ("a/b/c", None, "unknown model 'a/b/c'"),
        ("../../nothing", None, "there is no such folder"),
        ("/nothing/here", None, "there is no such folder"),
        ("gpt2@", None, "give one revision"),
        ("gpt2@a", "b", "give one revision"),
        ("smollm2-135m@main", None, "has no revisions"),
        (".", "main", "has no revisions"),
    ],
)
def test_bad_names(name, revision, message):
    """A slip of the keyboard costs a second, not a download; the message lists the choices."""
    with pytest.raises(UserError, match=message):
        resolve(name, revision)


def test_devices(monkeypatch):
    """`auto` is a device that is here; any other name that is not here is refused with the list of those that are."""
    assert pick_device("cpu") == CPU
    assert torch.zeros(1, device=pick_device("auto")).numel() == 1
    for name in ("tpu", "cuda:99", "cuda:x", "", "CPU"):
        with pytest.raises(UserError, match=r"choose auto or .*cpu"):
            pick_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [str(pick_device(name)) for name in ("auto", "cuda", "cuda:1")] == ["cuda:0", "cuda:0", "cuda:1"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for version, why in ((None, "built without CUDA"), ("12.4", "built for CUDA 12.4, and finds no GPU")):
        monkeypatch.setattr(torch.version, "cuda", version)
        with pytest.raises(UserError, match=why):
            pick_device("cuda")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert str(pick_device("auto")) == "mps"


STARTS = {"llama": "<|begin_of_text|>", "gemma3": "<bos>"}
ENDS = {
    "llama": {"<|begin_of_text|>", "<|end_of_text|>"},
    "gemma3": {"<bos>", "<eos>"},
    "qwen3": {"<|endoftext|>", "<|im_end|>"},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_loading_a_folder(family, tmp_path):
    """Every family loads ready to run, with its own document-start and end tokens, and the tokenizer adds nothing."""
    folder = save_tiny(tmp_path / family, family, n_layers=3, d_model=16)
    check(folder_spec(folder))
    loaded = load(folder_spec(folder), CPU, torch.float32)
    assert (loaded.n_layers, loaded.d_model, loaded.context) == (3, 16, CONTEXT)
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    names = loaded.tokenizer.convert_ids_to_tokens([loaded.document_start_id, *loaded.eos_ids])
    assert names[0] == STARTS.get(family, "<|endoftext|>")
    assert set(names[1:]) == ENDS.get(family, {"<|endoftext|>"})
    for text in ODD_TEXTS:
        ids = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert not {loaded.document_start_id, *loaded.eos_ids} & set(ids)
        assert loaded.tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert BlockStack(loaded.model).n_layers == 3


def test_smollm2_starts_documents_with_end_of_text():
    """Its BOS opens a chat turn: in front of plain text it would promise a role, and the text would be read as one."""
    assert document_start_id(tiny_tokenizer("smollm2")) == 0
    assert tiny_tokenizer("smollm2").bos_token == "<|im_start|>"


def test_all_end_tokens_are_found(tmp_path):
    """Chat models list several ends in generation_config.json only; one missed lets texts end early, unsuppressed."""
    folder = save_tiny(tmp_path / "m", "qwen3", n_layers=2, d_model=16)
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": [2, 9]}))
    assert load(folder_spec(folder), CPU, torch.float32).eos_ids == (0, 2, 9)


def test_the_number_format_is_the_one_asked_for(tmp_path):
    """Weights saved as float32 are converted as they are read."""
    folder = save_tiny(tmp_path / "m", "llama", n_layers=2, d_model=16)
    assert load(folder_spec(folder), CPU, torch.bfloat16).model.dtype == torch.bfloat16


def test_fingerprints(tmp_path):
    """Equal for the same model elsewhere and as written by another version; different for other weights or another
    configuration: directions of one model must not be injected into another."""
    one = save_tiny(tmp_path / "one", "gpt2", n_layers=2, d_model=16)
    two = shutil.copytree(one, tmp_path / "two")
    config = json.loads((two / "config.json").read_text())
    (two / "config.json").write_text(json.dumps({**config, "transformers_version": "9", "_name_or_path": "elsewhere"}))
    (two / "README.md").write_text("a card")
    three = shutil.copytree(one, tmp_path / "three")
    (three / "config.json").write_text(json.dumps({**config, "layer_norm_epsilon": 0.1}))
    four = save_tiny(tmp_path / "four", "gpt2", seed=1, n_layers=2, d_model=16)
    prints = [load(folder_spec(folder), CPU, torch.float32).fingerprint for folder in (one, two, three, four)]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_the_text_decoder_of_a_multimodal_model(tmp_path):
    """Gemma 3 12B is published inside a vision wrapper: what counts are the text decoder's layers, width and blocks."""
    text = {
        "vocab_size": len(tiny_tokenizer("gemma3")),
        "max_position_embeddings": CONTEXT,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
    }
    vision = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path)
    tiny_tokenizer("gemma3").save_pretrained(tmp_path)
    loaded = load(folder_spec(tmp_path), CPU, torch.float32)
    assert (loaded.n_layers, loaded.d_model, loaded.context) == (3, 16, CONTEXT)
    assert BlockStack(loaded.model).d_model == 16


@pytest.fixture
def gpt2_folder(tmp_path) -> Path:
    return save_tiny(tmp_path / "gpt2", "gpt2", n_layers=2, d_model=16)


def test_too_little_memory_is_said_before_anything_is_read(gpt2_folder, monkeypatch):
    """The kernel would otherwise kill the run without a word, after minutes of loading."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**20))
    for attempt in (
        lambda: check(folder_spec(gpt2_folder)),
        lambda: load(folder_spec(gpt2_folder), CPU, torch.float32),
    ):
        with pytest.raises(
            UserError, match=r"needs about 0\.3 GiB of memory as float32.*dtype=bfloat16.*choose smollm2"
        ):
            attempt()
    with pytest.raises(UserError, match="a smaller model") as caught:
        check(folder_spec(gpt2_folder), CPU, torch.bfloat16)
    assert "dtype=" not in str(caught.value)


def test_pickled_weights_are_not_read(gpt2_folder):
    """A folder with pytorch_model.bin alone is refused, although transformers could load it."""
    torch.save(load_file(gpt2_folder / SINGLE), gpt2_folder / "pytorch_model.bin")
    (gpt2_folder / SINGLE).unlink()
    with pytest.raises(UserError, match="only safetensors weights are read"):
        check(folder_spec(gpt2_folder))


def test_code_from_a_model_folder_is_not_run(gpt2_folder):
    """trust_remote_code is off: a folder that brings its own code is refused, and the code is not touched."""
    marker = gpt2_folder / "executed"
    (gpt2_folder / "modeling_own.py").write_text(
        f"open({str(marker)!r}, 'w')\nclass Own: pass\nclass OwnConfig: pass\n"
    )
    config = json.loads((gpt2_folder / "config.json").read_text())
    own = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.Own"}
    (gpt2_folder / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": own}))
    with pytest.raises(UserError, match="auto_map.*trust_remote_code is off"):
        check(folder_spec(gpt2_folder))
    assert not marker.exists()


def test_missing_tensors_are_refused(gpt2_folder):
    """transformers fills them with random numbers and a warning, and a sweep would study noise."""
    weights = load_file(gpt2_folder / SINGLE)
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, gpt2_folder / SINGLE, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 tensors of GPT2LMHeadModel are missing, such as .*h\.1\.mlp\.c_fc\.weight"):
        load(folder_spec(gpt2_folder), CPU, torch.float32)


def test_weights_of_another_shape_are_refused(gpt2_folder):
    """A configuration beside another model's weights."""
    config = json.loads((gpt2_folder / "config.json").read_text())
    (gpt2_folder / "config.json").write_text(json.dumps({**config, "n_embd": 32}))
    with pytest.raises(UserError, match="cannot be loaded"):
        load(folder_spec(gpt2_folder), CPU, torch.float32)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", SINGLE])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"[1]", b"\xff\xfe"])
def test_broken_folders(gpt2_folder, name, content):
    """Anything missing or broken is one line that names the folder."""
    (gpt2_folder / name).unlink()
    if content is not None:
        (gpt2_folder / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        load(folder_spec(gpt2_folder), CPU, torch.float32)
    assert str(gpt2_folder) in str(caught.value) and "\n" not in str(caught.value)

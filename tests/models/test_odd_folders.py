"""Folders and families as people have them, that cannot be used as they are or that only look so: what works, works; the rest is a line."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import CONTEXT, save_tiny, tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from emo_mlflow.directions.activations import text_means, token_states, whole
from emo_mlflow.directions.heads import head_states
from emo_mlflow.errors import UserError
from emo_mlflow.models.blocks import BlockStack
from emo_mlflow.models.families import context_of
from emo_mlflow.models.loading import check, load
from emo_mlflow.models.names import ModelSpec
from emo_mlflow.models.tokens import encode, encode_fit_texts
from emo_mlflow.models.weights import INDEX, SINGLE, weight_files
from emo_mlflow.serving.steered_model import base_files
from emo_mlflow.settings.templates import Form
from emo_mlflow.types import Prompt

CPU = torch.device("cpu")


def folder_spec(folder: Path) -> ModelSpec:
    return ModelSpec(str(folder), "folder", str(folder))


@pytest.fixture
def gpt2_folder(tmp_path) -> Path:
    return save_tiny(tmp_path / "gpt2", "gpt2", n_layers=2, d_model=16)


def add_shards(folder: Path, source: Path) -> None:
    """The weights of another folder as two shards and an index, as `save_pretrained` of an earlier day left them."""
    weights = load_file(source / SINGLE)
    names = sorted(weights)
    where = {name: f"model-0000{1 + (i > 5)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(where.values()):
        save_file({name: weights[name] for name in names if where[name] == file}, folder / file, metadata={"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))


def test_the_files_that_are_known_by_are_those_that_are_loaded(gpt2_folder, tmp_path):
    """Guards: model.safetensors loaded, and the fingerprint and the copy for serving of an old index's shards beside it."""
    alone = load(folder_spec(gpt2_folder), CPU, torch.float32)
    other = save_tiny(tmp_path / "other", "gpt2", seed=1, n_layers=2, d_model=16)
    add_shards(gpt2_folder, other)
    both = load(folder_spec(gpt2_folder), CPU, torch.float32)
    plainly = AutoModelForCausalLM.from_pretrained(gpt2_folder)
    for name, weight in plainly.state_dict().items():
        assert torch.equal(weight, both.model.state_dict()[name]) and torch.equal(weight, alone.model.state_dict()[name])
    assert both.fingerprint == alone.fingerprint
    copied = {path.name for path in base_files(gpt2_folder)}
    assert SINGLE in copied and INDEX not in copied and not any("of-0000" in name for name in copied)
    (gpt2_folder / SINGLE).unlink()
    sharded = load(folder_spec(gpt2_folder), CPU, torch.float32)
    assert sharded.fingerprint == load(folder_spec(other), CPU, torch.float32).fingerprint
    assert {path.name for path in base_files(gpt2_folder)} >= {INDEX, *(path.name for path in weight_files(gpt2_folder))}


def test_an_old_index_does_not_stop_a_good_folder(gpt2_folder):
    """Guards: a folder refused for shards that nobody reads."""
    (gpt2_folder / INDEX).write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    load(folder_spec(gpt2_folder), CPU, torch.float32)
    (gpt2_folder / INDEX).write_text("no JSON")
    check(folder_spec(gpt2_folder))


def test_unused_tokens_of_a_tokenizer_do_no_harm(gpt2_folder):
    """Gemma 3 1B and CodeLlama 34B are published with a token more than the embedding has rows. Guards: they refused; and index errors."""
    plain = load(folder_spec(gpt2_folder), CPU, torch.float32)
    tokenizer = tiny_tokenizer("gpt2")
    tokenizer.add_tokens(["<extra>"], special_tokens=True)
    tokenizer.save_pretrained(gpt2_folder)
    loaded = load(folder_spec(gpt2_folder), CPU, torch.float32)
    assert encode(loaded, ["some text"], True) == encode(plain, ["some text"], True) and loaded.eos_ids == plain.eos_ids
    with pytest.warns(UserWarning, match="control tokens"), pytest.raises(UserError, match="has the token '<extra>'.*take it out"):
        encode(loaded, ["fine", "some <extra> text"], True)


def test_a_document_that_starts_with_what_the_model_lacks_is_refused(gpt2_folder):
    """A tokenizer of another, larger model."""
    tokenizer = tiny_tokenizer("gpt2")
    tokenizer.add_special_tokens({"bos_token": "<other>"})
    tokenizer.save_pretrained(gpt2_folder)
    with pytest.raises(UserError, match="do not belong together"):
        load(folder_spec(gpt2_folder), CPU, torch.float32)


@pytest.mark.parametrize(("file", "value"), [("generation_config.json", [0, 999]), ("config.json", 999), ("config.json", -1)])
def test_ends_past_the_vocabulary_are_found_when_the_model_is_loaded(gpt2_folder, file, value):
    """Guards: an index error at the first token that is written."""
    path = gpt2_folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": value}))
    with pytest.raises(UserError, match=rf"eos_token_id (999|-1) of {file} is past the model's vocabulary"):
        load(folder_spec(gpt2_folder), CPU, torch.float32)


def test_a_start_is_needed_only_where_it_is_asked_for(gpt2_folder):
    """Guards: a model without BOS and EOS refused for a token that nobody wanted."""
    path = gpt2_folder / "tokenizer_config.json"
    content = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("bos_token", "eos_token", "added_tokens_decoder")}
    path.write_text(json.dumps(content))
    (gpt2_folder / "special_tokens_map.json").unlink(missing_ok=True)
    tokenizer = json.loads((gpt2_folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["something else"] = vocabulary.pop("<|endoftext|>")
    (gpt2_folder / "tokenizer.json").write_text(json.dumps({**tokenizer, "added_tokens": []}))
    loaded = load(folder_spec(gpt2_folder), CPU, torch.float32)
    assert loaded.document_start_id is None
    assert len(encode(loaded, ["abc"], False)[0]) == 3
    with pytest.raises(UserError, match="no token to start a document with.*prepend_bos=false"):
        encode(loaded, ["abc"], True)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised .*gptq.*give the model that it was made from"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "quantised .*bitsandbytes"),
        ({"transformers_weights": "other.safetensors"}, "weights file of its own"),
    ],
)
def test_weights_that_are_no_plain_numbers_are_refused(gpt2_folder, change, match):
    """Guards: "name 'QuantizeConfig' is not defined", and a fingerprint of other files than the loader reads."""
    path = gpt2_folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    for attempt in (lambda: check(folder_spec(gpt2_folder)), lambda: load(folder_spec(gpt2_folder), CPU, torch.float32)):
        with pytest.raises(UserError, match=match):
            attempt()


def test_an_adapter_beside_the_weights_is_refused(gpt2_folder):
    """transformers adds it to the weights where peft is installed, and not where it is not."""
    (gpt2_folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="holds an adapter"):
        load(folder_spec(gpt2_folder), CPU, torch.float32)


def test_a_folder_without_a_tokenizer_says_so_before_weights_are_read(gpt2_folder, monkeypatch):
    """Guards: a message about SentencePiece or a hub, after minutes of loading."""
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (gpt2_folder / name).unlink(missing_ok=True)
    monkeypatch.setattr("emo_mlflow.models.loading._load_model", lambda *args: pytest.fail("the weights were read"))
    with pytest.raises(UserError, match=r"no tokenizer that can be loaded: it has none of tokenizer\.json, .*copy them"):
        load(folder_spec(gpt2_folder), CPU, torch.float32)


LIKE_LLAMA = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL_MIXER = {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16}  # Falcon-H1's own takes 30 s to make


@pytest.mark.parametrize(
    "model_type", ["bloom", "mamba", "mamba2", "mpt", "recurrent_gemma", "rwkv", "xlnet", "bert", "ctrl", "openai-gpt", "jamba", "falcon_h1"]
)
def test_families_that_cannot_be_steered_are_refused_in_a_line(model_type):
    """Guards: a TypeError, AttributeError or RuntimeError of foreign code; and a model that is steered though its logits are others."""
    config = AutoConfig.for_model(model_type)
    for name, value in (LIKE_LLAMA | SMALL_MIXER).items():
        with contextlib.suppress(AttributeError, NotImplementedError):
            setattr(config, name, value)
    try:
        model = AutoModelForCausalLM.from_config(config).eval()
    except Exception as error:
        pytest.skip(f"transformers cannot make a small one: {error}")
    try:
        BlockStack(model)
    except UserError as error:
        assert "\n" not in str(error) and "use a decoder-only model such as" in str(error)


def test_the_context_is_what_the_family_calls_it():
    for model_type, name in (("gpt2", "n_positions"), ("mpt", "max_seq_len"), ("llama", "max_position_embeddings")):
        assert context_of(AutoConfig.for_model(model_type, **{name: 77})) == 77
    assert context_of(AutoConfig.for_model("mamba")) > 10**9


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_texts_past_the_context_are_refused_everywhere(family, tmp_path):
    """Guards: GPT-2's IndexError, and means of Llama over positions that it never saw."""
    loaded = load(folder_spec(save_tiny(tmp_path / family, family)), CPU, torch.float32)
    stack = BlockStack(loaded.model)
    fits, over = (0,) + (9,) * (CONTEXT - 1), (0,) + (9,) * CONTEXT
    assert len(text_means(stack, whole([fits]), "resid_pre")[0]) == 1
    for use in (
        lambda: text_means(stack, whole([over]), "resid_pre"),
        lambda: token_states(stack, [over], [[3]], "resid_pre"),
        lambda: head_states(stack, whole([over]), 1),
        lambda: encode_fit_texts(loaded, [Prompt("a" * CONTEXT, "joy", "fit")], Form()),
    ):
        with pytest.raises(UserError, match="more than the model's context of 128"):
            use()

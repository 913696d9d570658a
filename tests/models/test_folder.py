"""A model's folder from elsewhere: its code is not run, its config.json is not believed, its weights are in it."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_models import save_tiny

from emo_mlflow.errors import UserError
from emo_mlflow.models.folder import check_depth, read_config
from emo_mlflow.models.loading import KNOWN, _load_tokenizer, check, load
from emo_mlflow.models.names import resolve


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"), "gpt2", n_layers=2, d_model=16)


def changed(folder, target, **entries):
    """A copy of a model's folder with other entries in config.json."""
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | entries))
    return target


def test_code_that_a_tokenizer_brings_along_is_not_run(tiny_folder, tmp_path):
    """Guards: transformers' advice to pass trust_remote_code=True, which is no parameter here; the code is not touched."""
    folder = changed(tiny_folder, tmp_path / "m")
    marker = tmp_path / "executed"
    (folder / "own.py").write_text(f"open({str(marker)!r}, 'w')\nclass Own: pass\n")
    settings = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt_neox_japanese"}))
    with pytest.raises(UserError, match=r"auto_map.*trust_remote_code is off"):
        _load_tokenizer(changed(folder, tmp_path / "n", model_type="xglm_of_my_own"))
    assert not marker.exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
def test_attention_kernels_of_a_hub_are_refused(key, tiny_folder, tmp_path):
    """Guards: config.json that has transformers fetch a kernel and run it, whatever trust_remote_code says."""
    with pytest.raises(UserError, match="attention code from a hub"):
        check(resolve(str(changed(tiny_folder, tmp_path / "m", **{key: "evil/kernel"}))))
    nested = {"model_type": "gpt2", "text_config": {key: {"": "evil/kernel@main:f"}}}
    (tmp_path / "config.json").write_text(json.dumps(nested))
    with pytest.raises(UserError, match="attention code from a hub"):
        read_config(tmp_path, KNOWN)


def test_a_model_of_a_known_type_ignores_the_code_beside_it(tiny_folder, tmp_path):
    """Guards: a refusal of models that transformers has itself, whose authors left their first code in the folder."""
    folder = changed(tiny_folder, tmp_path / "m", auto_map={"AutoModelForCausalLM": "own.Own"})
    (folder / "own.py").write_text("raise SystemExit('run')")
    assert load(resolve(str(folder)), torch.device("cpu"), torch.float32).n_layers == 2


def test_more_blocks_than_tensors_are_refused_at_once(tiny_folder, tmp_path):
    """Guards: a number in config.json that has transformers build blocks until the memory is full."""
    with pytest.raises(UserError, match="do not belong together"):
        check(resolve(str(changed(tiny_folder, tmp_path / "m", n_layer=2**40))))
    with pytest.raises(UserError, match="num_hidden_layers"):
        check_depth(tmp_path, {"text_config": {"num_hidden_layers": 10**9}}, 400)


def test_weights_elsewhere_are_refused(tiny_folder, tmp_path):
    """Guards: a sharding index that names a file outside the folder."""
    folder = changed(tiny_folder, tmp_path / "m")
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    index = {"weight_map": {"transformer.wte.weight": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="only safetensors files beside it"):
        check(resolve(str(folder)))

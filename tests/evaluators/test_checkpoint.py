"""A classifier from elsewhere: its code and its pickles are not run."""

from __future__ import annotations

import json
import os
import pickle

import pytest
import torch
from click.testing import CliRunner
from emo_mlflow.evaluators.checkpoint import find_checkpoint
from tiny_models import save_tiny

from emo_mlflow.cli.main import main
from emo_mlflow.errors import UserError


def classifier(folder, weights="model.safetensors", **entries):
    """The least that looks like a sequence classifier's folder."""
    folder.mkdir()
    config = {"model_type": "bert", "id2label": {"0": "a", "1": "b"}, "problem_type": "single_label_classification", **entries}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / weights).write_bytes(b"")
    return folder


def test_pickled_classifiers_are_read_only_if_asked(tmp_path):
    """Guards: torch.load on what a hub serves; and an option that does nothing."""
    folder = classifier(tmp_path / "c", "pytorch_model.bin")
    with pytest.raises(UserError, match=r"can run code and is read only if asked.*--weights pickle"):
        find_checkpoint(str(folder))
    assert "pytorch_model.bin" in find_checkpoint(str(folder), "pickle").hashes


def test_a_pickle_that_runs_code_does_not_even_if_asked(tmp_path, monkeypatch):
    """Guards: an unrestricted unpickler behind `--weights pickle`."""
    monkeypatch.setenv("EMO_MLFLOW_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "c"
    marker = tmp_path / "executed"
    classifier(folder, "pytorch_model.bin", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=16)
    save_tiny(tmp_path / "t", "gpt2", n_layers=1, d_model=16)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tmp_path / "t" / name).read_bytes())

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    torch.save({"bert.x": Evil()}, folder / "pytorch_model.bin", pickle_module=pickle)
    result = CliRunner().invoke(main, ["export", "--scorer", str(folder), "--weights", "pickle"])
    assert result.exit_code == 2 and "cannot be loaded" in result.output, (result.output, result.exception)
    assert not marker.exists()


def test_code_that_a_classifier_brings_along_is_not_run(tmp_path):
    """Guards: a prompt at the terminal, `Do you wish to run the custom code?`"""
    folder = classifier(tmp_path / "c", model_type="own", auto_map={"AutoModelForSequenceClassification": "own.Own"})
    with pytest.raises(UserError, match=r"auto_map.*trust_remote_code is off"):
        find_checkpoint(str(folder))

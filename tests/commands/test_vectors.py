"""The vectors entry point: what it writes, what a sweep can take, what it refuses before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from asked import asked
from safetensors import safe_open
from tiny_models import save_tiny

from emo_mlflow.commands.vectors import chance_layers, norm_table, run_vectors
from emo_mlflow.directions.files import check_directions, load_directions, norms_from_metadata
from emo_mlflow.errors import UserError
from emo_mlflow.models.loading import load
from emo_mlflow.models.names import resolve
from emo_mlflow.settings.vectors import VectorSettings
from emo_mlflow.types import Direction


def write_texts(path: Path, n: int = 12) -> Path:
    rng = np.random.default_rng(0)
    words = {"joy": "you and the", "fear": "ring thin hour", "neutral": "stone brick road"}
    rows = ["text,emotion,role"]
    for emotion, vocabulary in words.items():
        rows += [f"{emotion[0]}{i} {' '.join(rng.choice(vocabulary.split(), 4))},{emotion},fit" for i in range(n)]
    path.write_text("\n".join([*rows, "a test,neutral,test"]), encoding="utf-8")
    return path


def test_a_run_writes_directions_that_a_sweep_takes(tmp_path: Path):
    """Guards: directions without what a sweep checks them by, and tables that miss a layer, a method or an emotion."""
    model, texts = save_tiny(tmp_path / "model", "llama"), write_texts(tmp_path / "t.csv")
    settings = asked(
        VectorSettings, model=model, dataset=texts, device="cpu",
        site="resid_post", direction="subspace:2", components=3, n_bootstrap=8, save_activations=True,
    )  # fmt: skip
    outcome = run_vectors(settings, tmp_path / "out")
    directions, metadata = load_directions(tmp_path / "out" / "directions.safetensors")
    fingerprint = load(resolve(str(model)), torch.device("cpu"), torch.float32).fingerprint
    check_directions(directions, metadata, emotions=["joy", "fear"], site="resid_post", shape=(4, 32), fingerprint=fingerprint)
    assert directions["joy"].basis is not None and directions["joy"].basis.shape == (4, 2, 32)
    norms = norms_from_metadata(metadata, 4)
    assert norms is not None and norms.shape == (4,) and (metadata["model_type"], metadata["blocks"]) == ("llama", "layers")
    readout = pd.read_csv(tmp_path / "out" / "readout.csv")
    assert len(readout) == 2 * 4 * 4 and set(readout["emotion"]) == {"joy", "fear"}
    subspaces = pd.read_csv(tmp_path / "out" / "subspaces.csv")
    assert len(subspaces) == 2 * 4 * 3 and (subspaces["explained"] < 1).all()
    with safe_open(str(tmp_path / "out" / "activations.safetensors"), framework="numpy") as file:
        assert file.get_tensor("activations").shape == (36, 4, 32)
        assert json.loads(file.metadata()["emotions"]) == ["joy"] * 12 + ["fear"] * 12 + ["neutral"] * 12
    with safe_open(str(tmp_path / "out" / "subspaces.safetensors"), framework="numpy") as file:
        assert file.get_tensor("joy").shape == (4, 3, 32) and file.get_tensor("joy.explained").shape == (4, 3)
    for name in ("readout", "norms", "subspaces"):
        assert (tmp_path / "out" / "figures" / f"{name}.png").stat().st_size > 5000
    names = {name for name, _, _ in outcome.metrics}
    assert {"readout.accuracy.lda.joy", "norm_ratio.fear", "stability.k3.joy"} <= names
    assert all(np.isfinite(value) for _, value, _ in outcome.metrics)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["config"]["emotions"] == ["joy", "fear"] and config["model_fingerprint"] == fingerprint


def test_activations_are_kept_only_if_asked_for(tmp_path: Path):
    """Guards: gigabytes on disk that nobody asked for; and a method outside the usual four."""
    model, texts = save_tiny(tmp_path / "model", "gpt2"), write_texts(tmp_path / "t.csv")
    settings = asked(
        VectorSettings, model=model, dataset=texts, device="cpu",
        direction="pc2", aggregation="last", methods=("mean_diff",), components=2, n_bootstrap=5,
    )  # fmt: skip
    outcome = run_vectors(settings, tmp_path / "out")
    assert not (tmp_path / "out" / "activations.safetensors").exists()
    assert set(pd.read_csv(tmp_path / "out" / "readout.csv")["method"]) == {"mean_diff", "pc2"}
    assert any("pc2" in line for line in outcome.lines)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"direction": "pc"}, "direction='pc' is no direction"),
        ({"methods": ("mean_diff", "svm")}, "methods='mean_diff,svm' is no direction"),
        ({"components": 13}, r"k=13 components: 'joy' has 12 texts"),
        ({"direction": "subspace:14"}, r"k=14 components"),
        ({"emotions": ("awe",)}, "awe"),
        ({"aggregation": "max"}, "aggregation='max' is not one of mean, last, attention"),
        ({"model": "/no/such"}, "no such folder"),
    ],
)
def test_mistakes_are_found_before_the_model_is_loaded(tmp_path: Path, change, match):
    """Guards: a typo that is found after minutes of work; smollm2-135m is not touched here."""
    given = {"model": "smollm2-135m", "dataset": str(write_texts(tmp_path / "t.csv")), "device": "cpu", **change}
    with pytest.raises(UserError, match=match):
        run_vectors(asked(VectorSettings, **given), tmp_path / "out")


def test_layers_at_chance_are_named():
    """Guards: a bad direction that only a day's sweep would show."""
    rows = pd.DataFrame({"layer": [0, 1, 2], "accuracy_low": [0.49, 0.61, 0.5]})
    assert chance_layers(rows) == [0, 2]


def test_norms_stand_beside_the_stream():
    """Guards: a ratio the wrong way round."""
    table = norm_table({"joy": Direction("joy", "resid_pre", np.full((2, 4), 3, np.float32))}, np.array([12.0, 60.0], np.float32))
    np.testing.assert_allclose(table["ratio"], [0.5, 0.1])

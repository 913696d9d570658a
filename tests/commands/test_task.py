"""Vectors, alignments and vector files as their user runs them: commands, runs in a store, and sweeps that take what they made."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGUFReader
from mlflow import MlflowClient
from places import write_worded_texts
from tiny_models import save_tiny
from tiny_scorers import write_scorer

from emo_mlflow import find_sweeps, load_sweep
from emo_mlflow.cli.main import main
from emo_mlflow.directions.files import load_directions

WORDS = {"joy": "you and the", "fear": "ring thin hour", "neutral": "stone brick road"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Two models, a scorer, a data set, and a store and a cache of its own."""
    monkeypatch.setenv("EMO_MLFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/store.db")
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "a", "gpt2")
    save_tiny(tmp_path / "b", "llama", seed=1, d_model=40)
    write_scorer(tmp_path / "scorer")
    write_worded_texts(tmp_path, WORDS, n_fit=10, n_test=4)
    return tmp_path


def invoke(command: str, **given: object):
    """Runs a command with an option per argument; `--device cpu` where it has one."""
    words = [command]
    for name, value in given.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return CliRunner().invoke(main, words)


def done(command: str, **given: object) -> str:
    """Runs a command that must succeed; returns what it said."""
    result = invoke(command, **given)
    assert result.exit_code == 0, result.output
    return result.output


def run_id_in(output: str) -> str:
    return next(line.split()[1] for line in output.splitlines() if line.startswith("Run "))


def small_sweep(**given: object) -> str:
    """A sweep that takes about a second; returns what it said."""
    settings = {"dataset": "data.jsonl", "scorers": "scorer", "layers": "1,2", "alphas": 2, "sequence_length": 4, "max_samples": 2, "num_random": 1}
    return done("sweep", **{"model": "a", "device": "cpu", **settings, **given})


def test_vectors_to_a_sweep(place):
    """What `vectors` fitted is what the sweep injects, and the run holds its settings, figures by layer and answer."""
    output = done("vectors", model="a", dataset="data.jsonl", direction="subspace:2", components=3, n_bootstrap=4, device="cpu")
    run_id = run_id_in(output)
    run = MlflowClient().get_run(run_id)
    assert run.info.status == "FINISHED" and run.data.tags["emo.kind"] == "vectors" and run.data.tags["emo.model"] == "a"
    assert run.data.params["config.direction"] == "subspace:2" and run.data.params["config.emotions"] == "joy,fear"
    assert "joy: best" in run.data.tags["mlflow.note.content"]
    steps = [metric.step for metric in MlflowClient().get_metric_history(run_id, "readout.accuracy.mean_diff.joy")]
    assert sorted(steps) == [0, 1, 2, 3]
    files = {file.path for file in MlflowClient().list_artifacts(run_id)}
    assert {"directions.safetensors", "subspaces.safetensors", "readout.csv", "norms.csv", "report.md", "figures", "config.json"} <= files
    sweep = load_sweep(run_id_in(small_sweep(directions=run_id)))
    fitted = load_directions(Path(run.info.artifact_uri) / "directions.safetensors")[0]
    for name, direction in sweep.directions.items():
        np.testing.assert_array_equal(direction.vectors, fitted[name].vectors)
        assert direction.basis is not None and direction.basis.shape == (4, 2, 32)
    own = load_sweep(run_id_in(small_sweep(direction="subspace:2")))
    texts = [s.completions.set_index(["condition_id", "prompt_id"])["completion"].sort_index() for s in (own, sweep)]
    assert texts[0].equals(texts[1]), "fitted the same way without the run"
    other = load_sweep(run_id_in(small_sweep(direction="pc1")))
    assert other.config["direction"] == "pc1" and not np.allclose(other.directions["joy"].vectors, own.directions["joy"].vectors)


def test_an_alignment_to_a_sweep_of_the_other_model(place):
    """Model A's directions, carried over, are of model B's width and pass for its own."""
    output = done("align", model_a="a", model_b="b", dataset="data.jsonl", k_max=2, depths=2, n_random=5, n_permutations=2, device="cpu")
    run_id = run_id_in(output)
    run = MlflowClient().get_run(run_id)
    assert run.data.tags["emo.kind"] == "alignment" and "joy:" in output and "before" in output
    assert any(name.startswith("overlap.k1.joy") for name in run.data.metrics)
    sweep = load_sweep(run_id_in(small_sweep(model="b", directions=run_id)))
    assert sweep.directions["joy"].vectors.shape == (4, 40)
    result = invoke("sweep", model="a", dataset="data.jsonl", scorers="scorer", directions=run_id, device="cpu")
    assert result.exit_code == 2 and "width" in result.output


def test_vectors_of_other_tools_there_and_back(place):
    """A control vector from a run, read back, is swept; the same place and size, one layer later at the other site."""
    run_id = run_id_in(done("vectors", model="a", dataset="data.jsonl", components=2, n_bootstrap=4, device="cpu"))
    said = done("export-vectors", directions=run_id, emotion="joy", layers="2", alpha=2, out="joy.gguf")
    assert "--control-vector" in said
    done("import-vectors", source="joy.gguf", out="joy.safetensors", emotion="joy", model="a")
    theirs = load_sweep(run_id_in(small_sweep(directions="joy.safetensors", site="resid_post", layers=1, alphas=1)))
    ours = load_sweep(run_id_in(small_sweep(directions=run_id, emotions="joy", layers=2, alphas=2)))
    texts = [
        table.loc[table["condition_id"].isin(s.conditions.loc[s.conditions["kind"] == "emotion", "condition_id"]), "completion"].tolist()
        for s, table in ((theirs, theirs.completions), (ours, ours.completions))
    ]
    assert texts[0] == texts[1] and len(texts[0]) == 2
    assert "lm_eval" in done("export-vectors", directions=run_id, emotion="joy", layers="2", out="joy.pt", format="lm-eval")


def test_a_sweep_to_another_tool(place):
    """The documented command: a file of one layer that says its model's type, and how llama.cpp is told to read it."""
    sweep = load_sweep(run_id_in(small_sweep(emotions="joy", layers="1,2", alphas=1)))
    said = done("export-vectors", directions=sweep.run_id, emotion="joy", out="joy.gguf")
    assert "llama-completion" in said and "--control-vector" in said
    file = GGUFReader("joy.gguf")
    assert bytes(file.fields["controlvector.model_hint"].parts[-1]).decode() == "gpt2"
    (tensor,) = file.tensors
    assert tensor.name == "direction.1"  # the stream before block 2 is what block 1 leaves; llama.cpp refuses direction.0
    np.testing.assert_allclose(tensor.data, sweep.directions["joy"].vectors[2], rtol=1e-6)


@pytest.mark.parametrize(
    ("command", "given", "words"),
    [
        ("vectors", {"components": 11}, "1 to 10"),
        ("vectors", {"direction": "subspace:11"}, "1 to 10"),
        ("vectors", {"direction": "pc0"}, "direction='pc0'"),
        ("vectors", {"methods": "mean_diff,subspace:2"}, "methods="),
        ("vectors", {"aggregation": "median"}, "mean, last, attention"),
        ("vectors", {"emotions": "hope"}, "hope"),
        ("align", {}, "model_a"),
        ("align", {"model_a": "a", "model_b": "b", "k_max": 6}, "k"),
        ("align", {"model_a": "a", "model_b": "b", "map": "linear"}, "procrustes, ridge"),
        ("sweep", {"direction": "pc1", "directions": "x.safetensors"}, "give one of them"),
        ("sweep", {"direction": "subspace:11"}, "1 to 10"),
        ("export-vectors", {"directions": "no-such-run", "out": "x.gguf"}, "neither a file nor a run"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_that_names_them(place, command, given, words):
    """Guards: a traceback, or a model that is loaded before the mistake is found."""
    data = {"dataset": "data.jsonl", "device": "cpu"} if command in ("vectors", "align", "sweep") else {}
    model = {"model": "a"} if command in ("vectors", "sweep") else {}
    scorers = {"scorers": "scorer"} if command == "sweep" else {}
    result = invoke(command, **{**data, **model, **scorers, **given})
    assert result.exit_code == 2, result.output
    assert words in result.output and "Traceback" not in result.output
    assert len(find_sweeps()) == 0


def test_an_emotion_with_one_text_cannot_be_fitted(place):
    """Guards: a direction that is one text's difference."""
    rows = [json.loads(line) for line in (place / "data.jsonl").read_text().splitlines()]
    fear = [row for row in rows if row["emotion"] == "fear"][:1]
    (place / "few.jsonl").write_text("\n".join(map(json.dumps, [*fear, *(row for row in rows if row["emotion"] != "fear")])))
    for command in ("vectors", "sweep"):
        result = invoke(command, model="a", dataset="few.jsonl", device="cpu")
        assert result.exit_code == 2 and "at least 2" in result.output


def test_directions_of_another_model_or_site_are_refused(place):
    """Guards: a direction that fits in width alone, and one that is injected elsewhere than it was measured."""
    run_id = run_id_in(done("vectors", model="a", dataset="data.jsonl", components=2, n_bootstrap=4, device="cpu"))
    save_tiny(place / "other", "gpt2", seed=5)
    for given, words in (({"model": "other"}, "another model"), ({"model": "a", "site": "resid_post"}, "site=resid_pre")):
        result = invoke("sweep", **given, dataset="data.jsonl", scorers="scorer", directions=run_id, device="cpu")
        assert result.exit_code == 2 and words in result.output

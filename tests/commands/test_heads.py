"""Sweeps over heads as their user runs them: ranked, replaced in generation, logged, resumed, compared."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from places import write_worded_texts
from safetensors.numpy import load_file
from tiny_models import save_tiny
from tiny_scorers import write_scorer

from emo_mlflow import compare, find_sweeps, load_sweep
from emo_mlflow.cli.main import main
from emo_mlflow.scoring.cards import Head

WORDS = {"gratitude": "you and the", "anger": "ring thin hour", "neutral": "stone brick road"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A model, a scorer, a data set, and a store and a cache of its own."""
    monkeypatch.setenv("EMO_MLFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/store.db")
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "model", "llama")
    write_scorer(tmp_path / "scorer", (Head("goemotions", ("gratitude", "anger"), "sigmoid", "logits", temperature=2.0),))
    write_worded_texts(tmp_path, WORDS, n_fit=12, n_test=4)
    return tmp_path


BASIC = ["--model", "model", "--dataset", "data.jsonl", "--scorers", "scorer", "--device", "cpu", "--sequence-length", "4"]


def heads(*more: str):
    """Three heads per emotion, two controls, three prompts."""
    return CliRunner().invoke(main, ["heads", *BASIC, "--layers", "all", "--top", "3", "--max-samples", "3", "--num-random", "2", *more])


def only_run(result):
    assert result.exit_code == 0, result.output
    return load_sweep(next(line.split()[1] for line in result.output.splitlines() if line.startswith("Run ")))


def test_a_sweep_over_heads_end_to_end(place):
    """The chosen heads are the ranked ones, each a child run; the run is found by its phase and holds what replaced them."""
    result = heads("--operation", "mean")
    sweep = only_run(result)
    assert "head" in result.output and find_sweeps(phase="head")["run_id"].tolist() == [sweep.run_id] and not len(find_sweeps())
    conditions = sweep.conditions
    assert conditions.groupby("kind").size().to_dict() == {"baseline": 1, "emotion": 2 * 3, "random": 2 * 2}
    assert len(sweep.completions) == 11 * 3 and set(conditions["n_patched"]) > {0}
    client = MlflowClient()
    folder = client.download_artifacts(sweep.run_id, "")
    effects = pd.read_csv(f"{folder}/heads.csv")
    ranked = effects[effects["rank"] <= 3].set_index(["emotion", "layer", "head"]).index
    chosen = conditions[conditions["kind"] == "emotion"].set_index(["emotion", "layer", "head"]).index
    assert set(chosen) == set(ranked)
    assert {name: tensor.shape for name, tensor in load_file(f"{folder}/replacements.safetensors").items()} == {
        "gratitude": (4, 4, 8),
        "anger": (4, 4, 8),
    }
    for name in ("change", "direct_effect", "strongest_heads", "direct_against_change"):
        assert f"figures/{name}.png" in {file.path for file in client.list_artifacts(sweep.run_id, "figures")}
    children = client.search_runs([sweep.run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{sweep.run_id}'")
    assert {(c.data.params["emotion"], int(c.data.params["layer"]), int(c.data.params["head"])) for c in children} == set(chosen)
    metric = next(name for name in children[0].data.metrics if name.startswith("random."))
    assert len(client.get_metric_history(children[0].info.run_id, metric)) == 2, "each head is beside all of its emotion's controls"
    assert client.get_run(sweep.run_id).data.metrics["hygiene.max_logit_change"] == 0


def test_head_runs_are_compared_like_sweeps(place):
    """Guards: heads of two layers taken for one condition, controls that are looked for at the head's own place, sweeps mixed with heads."""
    run = only_run(heads("--num-random", "4"))
    result = CliRunner().invoke(main, ["compare", "--phase", "head", "--n-bootstrap", "100"])
    assert result.exit_code == 0, result.output
    found = compare([run.run_id], n_bootstrap=100)
    specific, power = found.tables["specificity"], found.tables["power_analysis"]
    assert set(specific["n_draws"]) == {4} and len(specific) == 6 * 5
    assert specific[["layer", "head"]].notna().all().all() and not len(found.tables["model_contrasts"])
    assert set(power["phase"]) == {"head"} and set(power["head_spec"]) == {f"{c.layer}.{c.head}" for c in specific.itertuples()}
    folder = MlflowClient().download_artifacts(newest_comparison(), "")
    report = Path(folder, "report.md").read_text()
    assert "control heads" in report and "random direction" not in report and "head_maps" in report
    sweep = CliRunner().invoke(main, ["sweep", *BASIC, "--layers", "1", "--max-samples", "3"])
    assert sweep.exit_code == 0
    mixed = CliRunner().invoke(main, ["compare", "--runs", f"{run.run_id},{only_run(sweep).run_id}"])
    assert mixed.exit_code == 2 and "over heads" in mixed.output


def newest_comparison() -> str:
    return MlflowClient().search_runs(["0"], "tags.`emo.kind` = 'comparison'")[0].info.run_id


def test_restoring_continues_each_emotions_own_texts(place):
    """Guards: heads restored in neutral texts, where there is nothing to restore."""
    sweep = only_run(heads("--operation", "restore"))
    emotions = sweep.prompts.set_index("prompt_id")["emotion"]
    assert set(emotions) == {"gratitude", "anger"}
    done = sweep.completions.merge(sweep.conditions[["condition_id", "kind", "emotion"]], on="condition_id")
    patched = done[done["kind"] != "baseline"]
    assert (patched["prompt_id"].map(emotions) == patched["emotion"]).all() and len(done) == 6 + 10 * 3
    assert set(sweep.effects["n"]) == {3}


def test_every_head_of_a_model_that_cannot_be_ranked(place):
    """Guards: Gemma's heads, which can be replaced though they have no direct effects."""
    save_tiny(place / "gemma", "gemma3")
    refused = heads("--model", "gemma")
    assert refused.exit_code == 2 and "screen=all" in refused.output and not len(find_sweeps(phase="head"))
    sweep = only_run(heads("--screen", "all", "--layers", "3", "--model", "gemma"))
    assert sweep.conditions.groupby("kind").size().to_dict() == {"baseline": 1, "emotion": 2 * 4}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--operation", "add"), "zero, mean, patch, restore"),
        (("--screen", "some"), "top, all"),
        (("--top", "0"), "at least 1"),
        (("--layers", "7"), "layer 7 does not exist"),
        (("--target-layer", "1"), "target_layer=1 is not from 3"),
    ],
)
def test_mistakes_are_one_line_that_names_them(place, given, words):
    """Guards: a choice that is silently taken for another."""
    result = heads(*given)
    assert result.exit_code == 2 and words in result.output and "Traceback" not in result.output

"""A study as its user runs it: a design before the first text, an answer per emotion, the same answer after an interruption; mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from places import write_worded_texts
from tiny_models import save_tiny
from tiny_scorers import write_scorer

from emo_mlflow.cli.main import main
from emo_mlflow.scoring.cards import Head
from emo_mlflow.studying import run as running
from emo_mlflow.sweeping.resume import spool_folder

WORDS = {"gratitude": "you and the", "anger": "ring thin hour", "neutral": "stone brick road"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A model, a scorer, a data set, multiple-choice items, and a store and a cache of its own."""
    monkeypatch.setenv("EMO_MLFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/store.db")
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "model", "llama")
    write_scorer(tmp_path / "scorer", (Head("goemotions", ("gratitude", "anger"), "sigmoid", "logits", temperature=2.0),))
    write_worded_texts(tmp_path, WORDS, n_fit=12, n_test=8)
    items = [{"question": f"stone {i}", "choices": ["you", "ring", "and"], "answer": i % 3} for i in range(8)]
    (tmp_path / "items.jsonl").write_text("\n".join(json.dumps(item) for item in items))
    return tmp_path


BASIC = ["--model", "model", "--dataset", "data.jsonl", "--scorers", "scorer", "--device", "cpu", "--sequence-length", "4"]
BASIC += ["--items", "items.jsonl", "--max-samples", "8", "--alpha", "0.05", "--procedure", "sequence"]


def study(*more: str):
    return CliRunner().invoke(main, ["study", *BASIC, "--controls", "isotropic", *more])


def run_id_in(output: str) -> str:
    return next(line.split()[1] for line in output.splitlines() if line.startswith("Run "))


def artifacts(run_id: str) -> Path:
    return Path(MlflowClient().download_artifacts(run_id, ""))


def test_a_study_end_to_end(place):
    result = study("--controls", "isotropic,covariance,shuffled")
    assert result.exit_code == 0, result.output
    run_id = run_id_in(result.output)
    run = MlflowClient().get_run(run_id)
    folder = artifacts(run_id)
    design = json.loads((folder / "design.json").read_text())
    assert [item["emotion"] for item in design["places"]] == list({"gratitude": 0, "anger": 0}) or len(design["places"]) == 2
    assert run.info.status == "FINISHED" and run.data.tags["emo.kind"] == "study"
    verdicts = {name: run.data.tags[f"emo.verdict.{name}"] for name in ("gratitude", "anger")}
    assert set(verdicts.values()) <= {"specific", "steers", "not shown", "untested"}
    table = pd.read_parquet(folder / "verdicts.parquet")
    assert table.groupby("emotion")["verdict"].first().to_dict() == verdicts
    assert set(table["control"]) == {"isotropic", "covariance", "shuffled", "other: anger", "other: gratitude"}
    damage = pd.read_parquet(folder / "damage.parquet")
    assert damage["kl"].between(0.02, 0.12).all(), "the budget of 0.05 was met on the passages, and holds on others"
    assert (damage["n_items"] == 8).all() and damage["perplexity_ratio"].gt(0).all()
    for name in ("report.html", "report.md", "config.json", "others.parquet", "figures/against_draws.png", "figures/by_prompt.png"):
        assert (folder / name).is_file(), name
    for name in ("effect", "p", "draws", "harmed", "broken"):
        assert f"verdict.gratitude.{name}" in run.data.metrics or verdicts["gratitude"] == "untested"
    trust = "How well the scorer tiny agrees with readers on text that was written under intervention has not been measured"
    assert trust in (folder / "report.md").read_text()
    children = MlflowClient().search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")
    assert {child.data.params["emotion"] for child in children} == {"gratitude", "anger"}
    assert not spool_folder(run_id).exists()
    conditions, texts = (pd.read_parquet(folder / f"{name}.parquet") for name in ("conditions", "completions"))
    assert set(texts["condition_id"]) == set(conditions["condition_id"]) and not texts.duplicated(["condition_id", "prompt_id", "sample"]).any()
    assert conditions.loc[conditions["kind"] == "random", "dose"].gt(0).all() and texts["failure"].isna().all()
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith("- ") and "gratitude" in note and "Broken texts" in note


def test_the_same_study_twice_is_the_same(place):
    """Everything is a function of the design: the draws, the strengths, the texts and their order."""
    first, second = (artifacts(run_id_in(study().output)) for _ in range(2))
    for name in ("verdicts", "damage", "others"):
        pd.testing.assert_frame_equal(pd.read_parquet(first / f"{name}.parquet"), pd.read_parquet(second / f"{name}.parquet"))
    assert (first / "design.json").read_text() == (second / "design.json").read_text()


def test_a_stopped_study_goes_on_and_writes_nothing_twice(place, monkeypatch):
    whole = artifacts(run_id_in(study().output))
    written: list[int] = []
    usual = running.Writer.__call__

    def stop_soon(self, cells):
        for pack in usual(self, cells):
            written.append(len(pack))
            yield pack
            if len(written) == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(running.Writer, "__call__", stop_soon)
    stopped = study()
    assert stopped.exit_code == 130 and "study --resume" in stopped.output
    run_id = run_id_in(stopped.output)
    assert MlflowClient().get_run(run_id).info.status == "KILLED"
    again: list[int] = []

    def count(self, cells):
        for pack in usual(self, cells):
            again.append(len(pack))
            yield pack

    monkeypatch.setattr(running.Writer, "__call__", count)
    resumed = CliRunner().invoke(main, ["study", "--resume", run_id])
    assert resumed.exit_code == 0, resumed.output
    pd.testing.assert_frame_equal(pd.read_parquet(whole / "verdicts.parquet"), pd.read_parquet(artifacts(run_id) / "verdicts.parquet"))
    run = MlflowClient().get_run(run_id)
    assert run.info.status == "FINISHED" and "emo.design_changed" not in run.data.tags
    other = study()
    assert other.exit_code == 0
    refused = CliRunner().invoke(main, ["study", "--resume", run_id_in(other.output)])
    assert refused.exit_code == 2 and "nothing to resume" in refused.output


def test_texts_are_not_written_for_emotions_that_are_not_asked(place):
    result = study("--emotions", "gratitude")
    assert result.exit_code == 0, result.output
    assert {row.split()[0] for row in result.output.splitlines() if row.startswith(("gratitude ", "anger "))} == {"gratitude"}


MISTAKES = [
    (["--layers", "sorrow:2"], "layers names sorrow, which this study does not have: it has gratitude, anger"),
    (["--layers", "gratitude:2"], "layers has no value for anger"),
    (["--layers", "40"], "layer 40 does not exist: the model has layers 0 to 3"),
    (["--alpha", "fear:1"], "alpha names fear"),
    (["--alpha", "gratitude:0.1,gratitude:0.2"], "two values"),
    (["--alpha", "-1"], "is a damage, and must be above 0"),
    (["--alpha", "500"], "does a damage of 500 nats per token"),
    (["--budget", "soon"], "is no budget: give minutes or texts"),
    (["--budget", "60texts"], "is found with a probability"),
    (["--controls", "none"], "is not one of isotropic, covariance, shuffled"),
    (["--max-samples", "3"], "is not a whole number of at least 6"),
    (["--items", "nowhere.jsonl"], "cannot be read"),
    (["--margin", "0"], "leaves no loss to rule out"),
    (["--resume", "abc"], "is neither none nor the id of a run"),
    (["--samples-per-prompt", "2"], "needs temperature above 0"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_mistakes_are_one_line(place, words, message):
    result = study(*words)
    assert result.exit_code == 2, result.output
    assert message in result.output.splitlines()[-1] and "Traceback" not in result.output


def test_what_a_data_set_lacks_is_said(place):
    rows = [json.loads(line) for line in (place / "data.jsonl").read_text().splitlines()]
    without = [row for row in rows if row["emotion"] != "neutral"]
    (place / "without.jsonl").write_text("\n".join(map(json.dumps, without)))
    assert "no neutral texts" in study("--dataset", "without.jsonl").output
    few = [row for row in rows if row.get("role") != "test" or row["emotion"] != "neutral"]
    few += [row for row in rows if row.get("role") == "test" and row["emotion"] == "neutral"][:4]
    (place / "few.jsonl").write_text("\n".join(map(json.dumps, few)))
    assert "a study needs 6, so 2 more" in study("--dataset", "few.jsonl").output
    scarce = [row for row in rows if row.get("role") == "test" or row in [r for r in rows if r["emotion"] == row["emotion"]][:7]]
    (place / "scarce.jsonl").write_text("\n".join(map(json.dumps, scarce)))
    assert "controls=shuffled needs 20 texts of gratitude and neutral to fit on, and there are 14" in study(
        "--controls", "shuffled", "--dataset", "scarce.jsonl"
    ).output
    renamed = [{**row, "emotion": "wistful" if row["emotion"] == "anger" else row["emotion"]} for row in rows]
    (place / "wistful.jsonl").write_text("\n".join(map(json.dumps, renamed)))
    output = study("--dataset", "wistful.jsonl").output
    assert "no scorer has a label for wistful" in output and "goemotions.gratitude" in output


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 9 is not an object"),
        ('{"question": "a", "choices": ["x"], "answer": 0}', "there must be 2 to 26 choices"),
        ('{"question": "a", "choices": ["x", "y"], "answer": 2}', "is not the number of a choice"),
        ('{"question": "a", "choices": ["x", " "], "answer": 0}', "must be texts"),
    ],
)
def test_items_are_checked_by_line(place, line, message):
    with (place / "items.jsonl").open("a") as file:
        file.write("\n" + line)
    assert message in study().output

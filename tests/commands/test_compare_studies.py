"""`compare` over studies in a real store: a run with the answer, and mistakes in a line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from past_studies import log_past_study, past_study

from emo_mlflow import compare_studies
from emo_mlflow.cli.main import main

STRONG = {"gratitude": 4.0, "anger": 4.0}


class Store:
    """An MLflow store with a study of each of two models, an older one of the first, and a sweep."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.uri = folder, f"sqlite:///{folder}/mlflow.db"
        self.client = MlflowClient(self.uri)
        self.experiment = self.client.create_experiment("models", artifact_location=str(folder / "artifacts"))
        self.old = self.add("m0", seed=5)
        self.one, self.two = self.add("m0"), self.add("m1", effects={"gratitude": 4.0, "anger": 0.0}, seed=1)
        self.sweep = self.client.create_run(self.experiment, tags={"emo.kind": "sweep"}).info.run_id

    def add(self, model: str, effects=STRONG, seed: int = 0, status: str = "FINISHED", change=lambda study: study, **tags: str) -> str:
        study = change(past_study(model, effects, seed=seed, n=20))
        return log_past_study(self.client, self.experiment, study, self.folder / "logged", status, **tags)

    def compare(self, *words: str):
        return CliRunner().invoke(main, ["compare", "--tracking-uri", self.uri, "--experiment", "models", *words])


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


def test_the_newest_study_of_each_model_and_a_run_that_answers(store):
    result = store.compare("--phase", "study")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert any(line.startswith("gratitude: does more than random directions in all 2 models") for line in lines)
    assert any(line.startswith("anger: not shown to hold in all 2 models") for line in lines)
    run = store.client.get_run(lines[-1].rsplit("/", 3)[-3])
    assert run.data.tags["emo.kind"] == "comparison" and set(run.data.tags["emo.studies"].split(",")) == {store.one, store.two}
    assert run.data.tags["emo.verdict.gratitude"] == "specific in 2 of 2" and run.data.metrics["verdict.gratitude.specific"] == 2
    assert "in all 2 models" in run.data.tags["mlflow.note.content"]
    assert {item.dataset.name for item in run.inputs.dataset_inputs} == {"m0", "m1"}
    folder = Path(store.client.download_artifacts(run.info.run_id, "", str(store.folder)))
    answers = pd.read_parquet(folder / "answers.parquet")
    assert len(answers) == 4 and (folder / "report.html").stat().st_size > 10_000 and (folder / "figures/across_models.png").is_file()


def test_the_same_from_python(store):
    found = compare_studies([store.one, store.two], tracking_uri=store.uri)
    assert found.tables["together"].set_index("emotion").loc["gratitude", "holds"] == "specific" and not found.notes


def mistakes(store: Store) -> dict[str, tuple[list[str], str]]:
    lacking = store.add("m2", seed=2, change=lambda study: replace(study, verdicts=study.verdicts.drop(columns="p_all")))
    running = store.add("m3", seed=3, status="KILLED")
    labelled = store.add("m4", seed=4, change=lambda study: replace(study, design=_other_labels(study.design)))
    damaged = store.add("m6", seed=6, change=lambda study: replace(study, design={"places": [{"emotion": "gratitude"}]}))
    return {
        "damaged": ([store.one, damaged], f"design.json of run {damaged} is no design"),
        "a sweep among them": ([store.one, store.sweep], f"run {store.one} is a study, and run {store.sweep} is sweep"),
        "one": ([store.one], "give studies of at least two models"),
        "twice": ([store.one, store.one], "is given 2 times"),
        "of one model": ([store.one, store.old], "are studies of one model (m0)"),
        "missing": ([store.one, "f" * 32], "there is no run"),
        "unfinished": ([store.one, running], f"is KILLED: go on with `emo-mlflow study --resume {running}`"),
        "of another version": ([store.one, lacking], "has no column 'p_all'"),
        "another label": ([store.one, labelled], "have different own labels of gratitude"),
    }


def _other_labels(design):
    return {**design, "places": [{**place, "metric": "goemotions.joy"} for place in design["places"]]}


def test_mistakes_are_one_line(store):
    for what, (ids, message) in mistakes(store).items():
        result = store.compare("--runs", ",".join(ids))
        assert result.exit_code == 2 and message in result.output.splitlines()[-1], (what, result.output)
    for words, message in (
        (["--runs", f"{store.one},{store.two}", "--family", "model"], "family=model is for comparisons of sweeps"),
        (["--runs", f"{store.one},{store.two}", "--language", "ja"], "language=ja is for comparisons of sweeps"),
        (["--phase", "study", "--filter", "params.x = 'y'"], "has no finished study that fits the filter"),
    ):
        result = store.compare(*words)
        assert result.exit_code == 2 and message in result.output.splitlines()[-1], result.output


def test_other_strengths_are_told_of(store):
    other = store.add("m5", seed=6, change=lambda study: replace(study, design=_stronger(study.design)), **{"emo.design_changed": "from abc"})
    result = store.compare("--runs", f"{store.one},{other}")
    assert result.exit_code == 0, result.output
    assert "Note: The studies differ in strength: m0 0.2 kl, m5 0.4 kl" in result.output and "design for m5 was changed" in result.output


def _stronger(design):
    return {**design, "places": [{**place, "alpha": 0.4} for place in design["places"]]}

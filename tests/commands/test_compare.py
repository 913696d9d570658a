"""A comparison as an MLflow run, over sweeps in a real store."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest
from asked import asked
from mlflow import MlflowClient
from synthetic import synthetic_sweep

from emo_mlflow.alignment.schemas import OVERLAP
from emo_mlflow.commands.compare import compare, run_comparison
from emo_mlflow.errors import UserError
from emo_mlflow.settings.compare import CompareSettings
from emo_mlflow.sweeping.results import SweepResult
from emo_mlflow.tracking.values import metric_name

OPTIONS = {"alphas": (1.0, 2.0), "layers": (1, 3), "emotions": ("gratitude", "anger")}


class Store:
    """An MLflow store with one experiment."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.uri = folder, f"sqlite:///{folder}/mlflow.db"
        self.client = MlflowClient(self.uri)
        self.experiment = self.client.create_experiment("study", artifact_location=str(folder / "artifacts"))

    def add(self, sweep: SweepResult, status: str = "FINISHED", kind: str = "sweep") -> str:
        """Logs a sweep's tables as tracking does."""
        tags = {"emo.kind": kind, "emo.model": sweep.config.model}
        run_id = str(self.client.create_run(self.experiment, tags=tags).info.run_id)
        folder = self.folder / run_id
        folder.mkdir()
        (folder / "config.json").write_text(
            json.dumps({"config": asdict(sweep.config), **sweep.facts}), encoding="utf-8"
        )
        for name in ("prompts", "conditions", "completions", "scores", "effects"):
            getattr(sweep, name).to_parquet(folder / f"{name}.parquet", index=False)
        self.client.log_artifacts(run_id, str(folder))
        self.client.set_terminated(run_id, status)
        return run_id


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store; making its tables takes longer than a test."""
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def ids(store: Store) -> tuple[str, str, str]:
    """An old sweep of model-a, one of model-b, and a newer one of model-a."""
    return tuple(
        store.add(synthetic_sweep(model, **OPTIONS, seed=i))
        for i, model in enumerate(("model-a", "model-b", "model-a"))
    )


def test_by_default_the_newest_finished_sweep_of_each_model_is_compared(
    store: Store, ids: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against comparing an old run, or all runs, of a model; and against a run that does not say what it compared."""
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    store.add(synthetic_sweep("model-b", **OPTIONS), status="FAILED")
    said: list[str] = []
    run_id = run_comparison(
        asked(CompareSettings, from_experiment="study", n_bootstrap=100, family="model"), store.uri, "study", said.append
    )
    run = store.client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert set(run.data.tags["emo.sweeps"].split(",")) == {ids[1], ids[2]} and run.data.tags["emo.kind"] == "comparison"
    assert {item.dataset.digest for item in run.inputs.dataset_inputs} == {ids[1], ids[2]}
    assert run.data.params["compared.family"] == "model" and run.data.metrics["tests"] > 0
    assert run.data.metrics["gain.model-a.anger"] > 0.1
    files = {item.path for item in store.client.list_artifacts(run_id)}
    assert {
        "report.html",
        "report.md",
        "effect_sizes.parquet",
        "effect_sizes.csv",
        "specificity.csv",
        "model_contrasts.csv",
        "power_analysis.json",
    } <= files
    assert any("In 4 the own label rises against the baseline" in line for line in said) and said[-1].endswith("report.html")


def test_the_api_gives_the_tables_and_logs_nothing(store: Store, ids: tuple[str, str, str]) -> None:
    """Guards against an API that needs a run of its own, and settings that do not survive JSON."""
    before = len(store.client.search_runs([store.experiment]))
    found = compare([ids[0], ids[1]], tracking_uri=store.uri, n_bootstrap=50)
    assert len(found.tables["effect_sizes"]) == 2 * 2 * 2 * 2 * 10
    assert [source.label for source in found.sources] == ["model-a", "model-b"] and found.sources[0].seconds >= 0
    assert len(store.client.search_runs([store.experiment])) == before


def test_an_alignment_among_the_runs_is_read_for_k_selection(store: Store, ids: tuple[str, str, str]) -> None:
    """Guards against an alignment that is taken for a broken sweep."""
    run_id = store.client.create_run(store.experiment, tags={"emo.kind": "alignment"}).info.run_id
    rows = [
        {
            **{name: 0.0 for name in OVERLAP.names},
            **{"model_a": "a", "model_b": "b", "emotion": "anger", "map": "ridge"},
            **{"k": k, "layer_a": i, "layer_b": i, "overlap": 0.3, "null_mean": 0.1, "null_q95": 0.12},
        }
        for k in (1, 2)
        for i in range(3)
    ]
    OVERLAP.write(pd.DataFrame(rows), store.folder / "overlap.parquet")
    store.client.log_artifact(run_id, str(store.folder / "overlap.parquet"))
    assert compare([ids[0], run_id], tracking_uri=store.uri, n_bootstrap=20).tables["k_selection"]["k"].tolist() == [
        1,
        2,
    ]
    pd.DataFrame(rows).drop(columns="overlap").to_parquet(store.folder / "overlap.parquet")
    store.client.log_artifact(run_id, str(store.folder / "overlap.parquet"))
    with pytest.raises(UserError, match="has no column 'overlap'"):
        compare([ids[0], run_id], tracking_uri=store.uri)


@pytest.mark.parametrize("what", ["missing", "deleted", "unfinished", "no sweep"])
def test_runs_that_are_no_finished_sweeps_are_named(store: Store, what: str) -> None:
    """Guards against a comparison of half a sweep, and a message that does not say which run."""
    if what == "missing":
        run_id = "f" * 32
    else:
        status, kind = (
            ("RUNNING" if what == "unfinished" else "FINISHED"),
            ("condition" if what == "no sweep" else "sweep"),
        )
        run_id = store.add(synthetic_sweep("model-z", **OPTIONS, n_random=0), status, kind)
    if what == "deleted":
        store.client.delete_run(run_id)
    with pytest.raises(UserError, match=run_id):
        compare([run_id], tracking_uri=store.uri)


def test_a_comparison_that_cannot_be_made_fails_its_run_and_says_why(
    store: Store, ids: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against a run that looks as if it were still running, and against a run of `mlflow run` left open."""
    run_id = store.client.create_run(store.experiment).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    with pytest.raises(UserError, match="given 2 times"):
        run_comparison(asked(CompareSettings, runs=(ids[0], ids[0])), store.uri, None, print)
    run = store.client.get_run(run_id)
    assert run.info.status == "FAILED" and "given 2 times" in run.data.tags["emo.failure"]
    with pytest.raises(UserError, match="no finished sweep that fits"):
        run_comparison(asked(CompareSettings, from_experiment="study", filter="tags.`emo.model` = 'none'"), store.uri, None, print)


def test_ids_and_names_are_read_as_they_are_meant() -> None:
    """Guards against an empty id that becomes a search for all runs, and metric names that MLflow refuses."""
    assert asked(CompareSettings, runs="a, b").runs == ("a", "b") and asked(CompareSettings).runs == ()
    for mistake in (lambda: asked(CompareSettings, runs="a,,b"), lambda: compare("a,,b")):
        with pytest.raises(UserError, match=r"runs='a,,b' has an empty item"):
            mistake()
    assert metric_name("gain.org/m(scope=a)™.joy") == "gain.org/m_scope_a__-c12b.joy"

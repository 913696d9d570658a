"""What a sweep leaves in MLflow, and what is read back from there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pytest
from mlflow import MlflowClient
from servers import free_port
from synthetic import synthetic_sweep, with_effects

from emo_mlflow import find_sweeps, load_sweep
from emo_mlflow.commands.compare import source_of
from emo_mlflow.errors import UserError
from emo_mlflow.report.findings import findings
from emo_mlflow.report.sweep import verdicts
from emo_mlflow.tracking import logged_run
from emo_mlflow.tracking import store as store_module
from emo_mlflow.tracking.lifecycle import mark_failed
from emo_mlflow.tracking.record import effect_name
from emo_mlflow.tracking.store import check_store
from emo_mlflow.tracking.sweep_run import SweepRun, fetch_directions

ARTIFACTS = {
    "config.json", "prompts.parquet", "fit_prompts.parquet", "directions.safetensors", "conditions.parquet", "completions.parquet",
    "scores.parquet", "effects.parquet", "examples.json", "examples.html", "report.md", "report.html", "figures",
}  # fmt: skip


@pytest.fixture
def store(tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    MlflowClient(uri).create_experiment("study", artifact_location=str(tmp_path / "artifacts"))
    return uri


def logged(store, result):
    with SweepRun.open(result.config, tracking_uri=store, experiment="study") as run:
        run.log(result)
    return run.run_id


def children_of(store, run_id):
    client = MlflowClient(store)
    experiment = client.get_run(run_id).info.experiment_id
    return list(client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{run_id}'", max_results=1000))


def test_everything_comes_back_as_it_was(store):
    result = synthetic_sweep(n_prompts=6, n_layers=4, n_random=2)
    sweep = load_sweep(logged(store, result), store)
    for name in ("prompts", "conditions", "completions", "scores", "effects"):
        written = getattr(result, name).replace({None: np.nan})  # a column without any text is read back so
        pd.testing.assert_frame_equal(getattr(sweep, name), written, check_dtype=False)
    assert (sweep.scores.dtypes.iloc[3:] == np.float32).all()
    assert tuple(sweep.config["layers"]) == result.config.layers
    for name, direction in result.swept.fit.directions.items():
        np.testing.assert_array_equal(sweep.directions[name].vectors, direction.vectors)
    client = MlflowClient(store)
    assert {file.path for file in client.list_artifacts(sweep.run_id)} == ARTIFACTS
    assert client.get_run(sweep.run_id).info.status == "FINISHED"


def test_a_table_can_be_read_in_part(store, monkeypatch):
    """Guards: a table that is read whole to look at three rows, and one that is not what it is declared to be."""
    result = synthetic_sweep(n_prompts=6, n_layers=2, n_random=1)
    sweep = load_sweep(logged(store, result), store)
    condition = result.conditions["condition_id"].iloc[3]
    found = sweep.scan("scores").to_table(columns=["prompt_id", "goemotions.anger"], filter=ds.field("condition_id") == condition)
    expected = result.scores.loc[result.scores["condition_id"] == condition, ["prompt_id", "goemotions.anger"]]
    pd.testing.assert_frame_equal(found.to_pandas(), expected.reset_index(drop=True), check_dtype=False)
    assert sum(len(batch) for batch in sweep.scan("completions").to_batches()) == len(result.completions)
    with pytest.raises(UserError, match="has no table 'tokens': there are prompts, fit_prompts"):
        sweep.scan("tokens")
    for damage, said in ((lambda t: t.drop(columns="nll"), "has no column 'nll'"), (lambda t: t.assign(nll="x"), "the column 'nll' holds")):
        path = sweep._fetch("completions.parquet")
        damage(pd.read_parquet(path)).to_parquet(path, index=False)
        monkeypatch.setattr(sweep, "_fetch", lambda name, path=path: path)
        with pytest.raises(UserError, match=said):
            sweep.scan("completions")
        monkeypatch.undo()
    path.write_bytes(b"PAR1")
    monkeypatch.setattr(sweep, "_fetch", lambda name: path)
    with pytest.raises(UserError, match="cannot be read"):
        sweep.scan("completions")


def test_an_artifact_is_downloaded_once(store, monkeypatch):
    """Guards: a comparison's report, which shows texts of several conditions, downloading a large table for each of them."""
    sweep = load_sweep(logged(store, synthetic_sweep(n_prompts=6, n_layers=2, n_random=1)), store)
    downloads: list[str] = []
    monkeypatch.setattr(logged_run, "fetch", lambda run_id, name, uri: downloads.append(name) or store_module.fetch(run_id, name, uri))
    source = source_of(sweep)
    source.tables()
    for condition in sweep.conditions["condition_id"].iloc[:3]:
        assert len(source.texts([condition])) == 6
    assert sorted(downloads) == sorted(set(downloads)) and "completions.parquet" in downloads


def test_what_is_fetched_goes_when_the_process_does(store):
    """Guards: a folder in the temporary folder for every table that anybody ever looked at."""
    run_id = logged(store, synthetic_sweep(n_prompts=4, n_layers=2, n_random=1))
    script = "import sys; from emo_mlflow import load_sweep; sweep = load_sweep(*sys.argv[1:]); sweep.effects; print(sweep.figure('layers').path)"
    shown = subprocess.run([sys.executable, "-c", script, run_id, store], capture_output=True, text=True, check=True).stdout.strip()
    assert shown.endswith("layers.png") and not Path(shown).exists() and not Path(shown).parents[1].exists()


def test_layer_profiles_are_steps_of_the_parents_metrics(store):
    """Two models' parents overlay in the UI because a metric's step is the layer, and its name holds no layer."""
    result = synthetic_sweep(n_prompts=6, n_layers=4, alphas=(1.0,), n_random=2)
    run_id = logged(store, result)
    history = MlflowClient(store).get_metric_history(run_id, "effect.gratitude.goemotions.gratitude")
    table = result.effects.merge(result.conditions, on="condition_id")
    own = table[
        (table["kind"] == "emotion") & (table["emotion"] == "gratitude") & (table["metric"] == "goemotions.gratitude")
    ]
    assert {(m.step, round(m.value, 9)) for m in history} == {
        (int(row["layer"]), round(row["mean_diff"], 9)) for row in own.to_dict("records")
    }
    assert effect_name("joy", "m", 2.0, 3, 2, 2) == "effect.joy.alpha_2.window_3.m"


def test_a_condition_is_a_child_that_can_be_filtered_alone(store):
    """Children carry the sweep's params (mlflow issue 1984), belong to their parent (1896), and random draws are steps, not runs."""
    result = synthetic_sweep(n_prompts=6, n_layers=3, n_random=4)
    run_id = logged(store, result)
    emotions = result.conditions[result.conditions["kind"] == "emotion"]
    assert len(children_of(store, run_id)) == len(emotions)
    client = MlflowClient(store)
    experiment = client.get_run(run_id).info.experiment_id
    found = client.search_runs(
        [experiment], "params.emotion = 'gratitude' and params.layer = '1' and params.alpha = '2.0'"
    )
    assert len(found) == 1
    child = found[0]
    assert child.data.params["model"] == result.config.model and child.data.params["scope"] == "generated"
    assert {"mean.goemotions.gratitude", "diff.goemotions.gratitude", "d_z.goemotions.gratitude", "n_patched"} <= set(
        child.data.metrics
    )
    steps = [m.step for m in client.get_metric_history(child.info.run_id, "random.goemotions.gratitude")]
    assert sorted(steps) == [0, 1, 2, 3]


def test_children_stop_past_the_limit_and_logging_twice_adds_none(store, monkeypatch):
    result = synthetic_sweep(n_prompts=4, n_layers=3, n_random=1)
    run_id = logged(store, result)
    n = len(children_of(store, run_id))
    with SweepRun.open(result.config, tracking_uri=store, run_id=run_id) as run:
        run.log(result)
    assert len(children_of(store, run_id)) == n
    monkeypatch.setattr("emo_mlflow.tracking.record.CHILD_LIMIT", 2)
    other = logged(store, result)
    assert not children_of(store, other)
    assert "child_runs=all" in MlflowClient(store).get_run(other).data.tags["emo.children"]
    everything = replace(result, config=replace(result.config, child_runs="all"))
    assert len(children_of(store, logged(store, everything))) == n


def test_two_children_of_one_condition_become_one(store):
    """A server that creates a run and loses the answer is asked again; so is one that a killed process had asked."""
    result = synthetic_sweep(n_prompts=4, n_layers=2, n_random=0)
    run = SweepRun.open(result.config, tracking_uri=store, experiment="study")
    client = MlflowClient(store)
    condition_id = result.conditions.loc[result.conditions["kind"] == "emotion", "condition_id"].iloc[0]
    tags = {"mlflow.parentRunId": run.run_id, "emo.condition_id": condition_id}
    experiment = client.get_run(run.run_id).info.experiment_id
    for _ in range(2):
        client.create_run(experiment, tags=tags)
    with SweepRun.open(result.config, tracking_uri=store, run_id=run.run_id) as resumed:
        resumed.log(result)
    found = [child.data.tags["emo.condition_id"] for child in children_of(store, run.run_id)]
    assert len(found) == len(set(found)) == 3 * 2 * 2


def test_nan_and_infinity_are_not_logged_as_numbers(store):
    """SQL stores turn infinities into 1.8e308."""
    result = synthetic_sweep(n_prompts=4, n_layers=2, n_random=0)
    effects = result.effects.copy()
    effects.loc[effects.index[0], ["d_z", "mean_diff"]] = [np.nan, np.inf]
    run_id = logged(store, with_effects(result, effects))
    for run in [MlflowClient(store).get_run(run_id), *children_of(store, run_id)]:
        assert all(np.isfinite(value) and abs(value) < 1e300 for value in run.data.metrics.values())


def test_progress_does_not_wait_for_the_store(store, monkeypatch):
    """A server that hangs would hold up the sweep at every message; and messages that wait would pile up for days."""
    config, taken, free = synthetic_sweep(n_prompts=3, n_layers=2).config, [], threading.Event()

    def hang(self, values, timestamp):
        taken.append(values[0][1])
        free.wait(20)

    monkeypatch.setattr("emo_mlflow.tracking.upload.Upload.log_progress", hang)
    monkeypatch.setattr("emo_mlflow.tracking.sweep_run.PROGRESS_SECONDS", 0.0)
    run = SweepRun.open(config, tracking_uri=store, experiment="study")
    start = time.monotonic()
    for done in range(200):
        run.progress(done, 1000, {})
    assert time.monotonic() - start < 5
    free.set()
    run._stop_background()
    assert len(taken) <= 3


def test_failures_and_interrupts_are_told_apart(store):
    config = synthetic_sweep(n_prompts=3, n_layers=2).config
    for error, status, reason in [
        (UserError("no such layer"), "FAILED", "no such layer"),
        (KeyboardInterrupt(), "KILLED", "interrupted"),
    ]:
        with pytest.raises(type(error)), SweepRun.open(config, tracking_uri=store, experiment="study") as run:
            raise error
        found = MlflowClient(store).get_run(run.run_id)
        assert found.info.status == status and reason in found.data.tags["emo.failure"]


def test_the_run_that_mlflow_run_made_is_used(store, monkeypatch):
    """Resumed runs skip run-context providers, so tags are set here; and entry-point parameters are there already."""
    client = MlflowClient(store)
    made = client.create_run(client.get_experiment_by_name("study").experiment_id)
    client.log_param(made.info.run_id, "model", "'quoted'")
    monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)
    result = synthetic_sweep(n_prompts=4, n_layers=2, n_random=0)
    with SweepRun.open(result.config, tracking_uri=store) as run:
        run.log(result)
    assert run.run_id == made.info.run_id
    found = client.get_run(run.run_id)
    note = found.data.tags["mlflow.note.content"]
    assert note.startswith("- gratitude: +") and "\n---\n\n- gratitude: raised" in note
    answers = {key: text for key, text in found.data.tags.items() if key.startswith("emo.answer.")}
    assert list(answers) == [f"emo.answer.{name}" for name in result.config.emotions] and all(" broken, L" in text for text in answers.values())
    assert found.info.run_name == f"{result.config.model} sweep"
    assert found.data.tags["emo.kind"] == "sweep" and found.data.params["config.model"] == result.config.model
    mark_failed("no such model", store)
    assert client.get_run(run.run_id).data.tags["emo.failure"] == "no such model"


def test_runs_that_are_no_finished_sweep_are_named(store):
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("study").experiment_id
    stranger = client.create_run(experiment, run_name="training").info.run_id
    with pytest.raises(UserError, match=rf"{stranger}.*training.*no sweep"):
        load_sweep(stranger, store)
    with pytest.raises(UserError, match="no run"):
        load_sweep("0" * 32, store)
    result = synthetic_sweep(n_prompts=3, n_layers=2)
    run = SweepRun.open(result.config, tracking_uri=store, experiment="study")
    with pytest.raises(UserError, match="RUNNING.*--resume"):
        load_sweep(run.run_id, store)
    done = logged(store, result)
    client.delete_run(done)
    with pytest.raises(UserError, match="deleted"):
        load_sweep(done, store)


def test_finding_sweeps(store):
    first = logged(store, synthetic_sweep("model-a", n_prompts=3, n_layers=2))
    second = logged(store, synthetic_sweep("model-b", n_prompts=3, n_layers=2))
    assert list(find_sweeps(tracking_uri=store)["run_id"]) == [second, first]
    assert list(find_sweeps("study", model="model-a", tracking_uri=store)["run_id"]) == [first]
    assert len(find_sweeps(filter="params.config.scope = 'generated'", tracking_uri=store)) == 2
    with pytest.raises(UserError, match="study"):
        find_sweeps("absent", tracking_uri=store)
    with pytest.raises(UserError, match="filter"):
        find_sweeps(filter="nonsense", tracking_uri=store)


def test_directions_are_a_file_or_a_run(store, tmp_path):
    run_id = logged(store, synthetic_sweep(n_prompts=3, n_layers=2))
    assert fetch_directions(run_id, store).name == "directions.safetensors"
    with pytest.raises(UserError, match="neither a file nor a run"):
        fetch_directions(str(tmp_path / "absent.safetensors"), store)


def test_a_server_that_is_not_there_is_an_error_at_once():
    """MLflow's own retries take minutes to say so."""
    start = time.monotonic()
    with pytest.raises(UserError, match="does not answer"):
        check_store(f"http://127.0.0.1:{free_port()}")
    assert time.monotonic() - start < 10


def test_a_server_whose_name_never_resolves_is_an_error_too(monkeypatch):
    """Looking up a name ignores the request's time limit."""
    monkeypatch.setattr(store_module, "STORE_SECONDS", 0.2)
    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **kwargs: time.sleep(2))
    start = time.monotonic()
    with pytest.raises(UserError, match=r"does not answer \(no answer within 0\.2 seconds\)"):
        check_store("http://nowhere.example")
    assert time.monotonic() - start < 1.5


def test_a_store_of_no_known_kind_is_refused_before_the_model_is_loaded():
    with pytest.raises(UserError, match=r"the tracking store foo://x is of no kind that MLflow knows: give http://"):
        check_store("foo://x")


def test_examples_open_in_mlflows_table_viewer(store):
    run_id = logged(store, synthetic_sweep(n_prompts=4, n_layers=2))
    client = MlflowClient(store)
    tags = client.get_run(run_id).data.tags
    assert {"path": "examples.json", "type": "table"} in json.loads(tags["mlflow.loggedArtifacts"])
    table = json.loads(Path(client.download_artifacts(run_id, "examples.json")).read_text(encoding="utf-8"))
    assert set(table) == {"columns", "data"} and {"prompt", "baseline", "patched"} <= set(table["columns"])


@pytest.mark.slow
def test_against_a_real_server(tmp_path, monkeypatch):
    """Over HTTP with proxied artifacts, as a remote reader has it."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
               "--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db", "--artifacts-destination", str(tmp_path / "artifacts")]  # fmt: skip
    server = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "MLFLOW_TRACKING_URI": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        uri = f"http://127.0.0.1:{port}"
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=1)
                break
            except OSError:
                time.sleep(0.5)
        check_store(uri)
        result = synthetic_sweep(n_prompts=4, n_layers=2, n_random=1)
        with SweepRun.open(result.config, tracking_uri=uri) as run:
            run.progress(1, 2, {"cells_per_second": 3.0})
            run.log(result)
        sweep = load_sweep(run.run_id, uri)
        pd.testing.assert_frame_equal(sweep.effects, result.effects, check_dtype=False)
        assert any(uri in line for line in run.hints())
    finally:
        server.terminate()
        server.wait()


def test_names_of_children_fit_their_column(store):
    """MLflow's table of runs cuts a child's name after about 17 characters, so that all conditions looked the same."""
    result = synthetic_sweep(n_prompts=4, n_layers=3, alphas=(1.0, -0.5), n_random=0)
    names = {child.info.run_name for child in children_of(store, logged(store, result))}
    assert len(names) == 3 * 3 * 2 and max(map(len, names)) <= 18 and {"gratitude L2 α1", "anger L0 α-0.5"} <= names


def test_the_report_shows_its_figures_in_mlflow(store, tmp_path):
    """MLflow's viewer shows no picture that report.md refers to: report.html has them in itself, and no caption appears twice."""
    run_id = logged(store, synthetic_sweep(n_prompts=4, n_layers=2, n_random=1))
    client = MlflowClient(store)
    page = Path(client.download_artifacts(run_id, "report.html", str(tmp_path))).read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 3 and "&lt;b&gt;feel" in page and "<b>" not in page
    lines = Path(client.download_artifacts(run_id, "report.md", str(tmp_path))).read_text(encoding="utf-8").splitlines()
    assert "![against_random](figures/against_random.png)" in lines
    assert sum("random directions of the same norm" in line for line in lines) == 1


def test_a_sweep_that_moved_nothing_says_so():
    """A random model gave "raised from 0.00 to 0.00 (d_z nan)"."""
    result = synthetic_sweep(n_prompts=4, n_layers=2, n_random=1)
    flat = result.effects.assign(mean_patched=result.effects["mean_baseline"], mean_diff=0.0, d_z=np.nan)
    flat_result = with_effects(result, flat)
    (first, *_) = verdicts(flat_result, findings(flat_result))
    assert "gratitude: no condition changed goemotions.gratitude (n = 4)." in first

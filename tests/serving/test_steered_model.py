"""A condition of a sweep as a model: the texts are the sweep's, in this process, in another, and over HTTP; mistakes are named."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import asdict, replace
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from places import write_texts
from safetensors.numpy import save_file
from servers import free_port
from synthetic import synthetic_sweep
from tiny_models import CONTEXT, save_tiny
from tiny_scorers import write_scorer

from emo_mlflow import load_sweep
from emo_mlflow.cli.main import main
from emo_mlflow.errors import UserError
from emo_mlflow.serving.condition_choice import Wanted, choose, recommended
from emo_mlflow.serving.steered_model import GenerationDefaults, Settings, load_steered, save_steered
from emo_mlflow.settings.sweep import make_config
from emo_mlflow.sweeping.plan import make_plan, prepare
from emo_mlflow.tracking.sweep_run import SweepRun

EMOTIONS = ("gratitude", "anger", "apology", "neutral")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny model, a scorer, a data set, and a finished sweep of them in a store of its own."""
    folder = tmp_path_factory.mktemp("place")
    save_tiny(folder / "model", "gpt2")
    write_scorer(folder / "scorer")
    write_texts(folder, EMOTIONS)
    words = ["sweep", "--layers", "1,2", "--alphas", "1,8", "--alpha-schedule", "linear", "--scope", "window", "--patch-window", "2,3"]
    words += ["--sequence-length", "12", "--max-samples", "4", "--num-random", "1", "--device", "cpu"]
    words += ["--model", str(folder / "model"), "--dataset", str(folder / "data.jsonl"), "--scorers", str(folder / "scorer")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMO_MLFLOW_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        result = invoke(*words, "--tracking-uri", store(folder))
    assert result.exit_code == 0, result.output
    (folder / "sweep").write_text(re.search(r"Run\s+([0-9a-f]{32})", result.output)[1])
    return folder


def store(place: Path) -> str:
    return f"sqlite:///{place}/mlflow.db"


def invoke(*words: str):
    return CliRunner().invoke(main, list(words), catch_exceptions=True)


def log_model(place: Path, *words: str):
    run_id = (place / "sweep").read_text()
    return invoke("log-model", "--run-id", run_id, "--tracking-uri", store(place), *words)


@pytest.fixture(scope="module")
def logged(place):
    """The condition anger, layer 2, alpha 8, window 3, logged with weights and registered; the answer of the command line."""
    words = ["--emotion", "anger", "--layer", "2", "--alpha", "8", "--patch-window", "3", "--include-weights"]
    result = log_model(place, *words, "--register", "angry")
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


@pytest.fixture
def active(place):
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(store(place))
    yield
    mlflow.set_tracking_uri(before)


def swept(place: Path, **setting) -> pd.DataFrame:
    """Prompts and completions of one condition, and of the baseline."""
    sweep = load_sweep((place / "sweep").read_text(), store(place))
    table = sweep.conditions
    rows = table[(table[list(setting)] == pd.Series(setting)).all(axis=1) & (table["kind"] == "emotion")]
    assert len(rows) == 1
    baseline = table.loc[table["kind"] == "baseline", "condition_id"].iloc[0]
    done = sweep.completions
    patched = done[done["condition_id"] == rows["condition_id"].iloc[0]].set_index("prompt_id")["completion"]
    clean = done[done["condition_id"] == baseline].set_index("prompt_id")["completion"]
    texts = sweep.prompts.set_index("prompt_id")["text"]
    return pd.DataFrame({"prompt": texts, "completion": patched, "baseline": clean})


def ask(url: str, payload: dict) -> tuple[int, dict]:
    request = urllib.request.Request(url, json.dumps(payload).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_served_over_http_it_writes_what_the_sweep_wrote(place, logged, tmp_path):
    """A real server process, from the registry's name: the texts are the sweep's, byte for byte, and the strength is the caller's."""
    table = swept(place, emotion="anger", layer=2, alpha=8.0, patch_window=3)
    assert (table["completion"] != table["baseline"]).any(), "the condition must do something for this to test anything"
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/angry/1", "--env-manager", "local"]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store(place), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--port", str(port)], env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            wait_for(f"http://127.0.0.1:{port}/ping", server, tmp_path / "log")
            url = f"http://127.0.0.1:{port}/invocations"
            prompts = list(table["prompt"])
            assert ask(url, {"inputs": prompts}) == (200, {"predictions": list(table["completion"])})
            frame = {"columns": ["prompt"], "data": [[prompt] for prompt in prompts]}
            clean = ask(url, {"dataframe_split": frame, "params": {"alpha": 0}})
            assert clean == (200, {"predictions": list(table["baseline"])})
            rows = [{"id": i, "prompt": prompt} for i, prompt in enumerate(prompts)]
            for payload in ({"inputs": {"prompt": prompts}}, {"dataframe_records": rows}, {"instances": prompts}):
                assert ask(url, payload) == (200, {"predictions": list(table["completion"])})
            status, answer = ask(url, {"inputs": prompts, "params": {"alhpa": 0}})
            assert status == 400 and "unknown parameter 'alhpa': there are alpha" in answer["message"]
            status, answer = ask(url, {"inputs": ["a text", ""]})
            assert status == 400 and "prompt 1 is empty" in answer["message"]
        finally:
            os.killpg(server.pid, 15)
            server.wait(30)


def wait_for(url: str, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"the server did not come up: {log.read_text()}")


def test_what_is_logged(place, logged, active):
    """Signature with the params' defaults, an example, pins, no pickle, and a way back to the sweep."""
    info = mlflow.models.get_model_info("models:/angry/1")
    params = {spec.name: spec.default for spec in info.signature.params}
    assert params == {"alpha": 8.0, "max_new_tokens": 12, "temperature": 0.0, "seed": 0}
    folder = Path(mlflow.artifacts.download_artifacts("models:/angry/1"))
    files = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__"]  # made where the model was loaded
    names = {path.suffix for path in files}
    assert names <= {".json", ".jsonl", ".typed", ".safetensors", ".py", ".yaml", ".txt", ""} and (folder / "input_example.json").exists()
    requirements = (folder / "requirements.txt").read_text().split()
    assert {"pandas", "torch", "transformers"} <= {line.partition("==")[0] for line in requirements} and "emo" not in " ".join(requirements)
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in requirements)
    assert [column.name for column in info.signature.inputs] == [0, "prompt", "text"]  # 0: what MLflow calls the column of a list
    for file in ("MLmodel", "requirements.txt", "conda.yaml", "python_env.yaml"):
        assert str(place) not in (folder / file).read_text() and "/tmp" not in (folder / file).read_text(), file
    run = MlflowClient().get_run(info.run_id)
    assert run.data.tags["mlflow.parentRunId"] == (place / "sweep").read_text() and run.info.status == "FINISHED"
    assert {"diff.fluency.nll", "diff.raw.x"} <= set(run.data.metrics)
    assert run.data.params["emotion"] == "anger" and run.data.params["chosen"] == "asked for"
    assert "models:/angry/1" in logged and "mlflow models serve" in logged


def test_prompts_come_in_any_shape(place, logged, active):
    """A string, a list, a column; a table's other columns are not taken for prompts."""
    table = swept(place, emotion="anger", layer=2, alpha=8.0, patch_window=3)
    prompts, expected = list(table["prompt"]), list(table["completion"])
    model = mlflow.pyfunc.load_model("models:/angry/1")
    assert model.predict(prompts) == expected
    assert model.predict(prompts[0]) == expected[:1]
    assert model.predict(pd.Series(prompts, name="text")) == expected
    assert model.predict(pd.DataFrame({"prompt": prompts, "id": "x"}, index=range(4, 0, -1))) == expected
    assert model.predict(pd.DataFrame({"prompt": pd.Series([], dtype=str)})) == []
    assert model.predict(pd.DataFrame({"id": range(4), "prompt": prompts})) == expected
    assert model.predict({"prompt": prompts}) == model.predict({"prompt": np.array(prompts)}) == expected
    sweep = load_sweep((place / "sweep").read_text(), store(place))
    assert model.predict(sweep.prompts) == expected, "prompts.parquet of the sweep itself"
    with pytest.raises(MlflowException, match="a column called prompt or text"):
        model.predict(pd.DataFrame({"id": "x", "question": prompts}))
    for wrong, message in (([""], "prompt 0 is empty"), (["a", "b" * CONTEXT], "prompt 1 has .* context of 128")):
        with pytest.raises(MlflowException, match=message):
            model.predict(wrong)
    for params, message in (({"temperature": -1.0}, "below 0"), ({"max_new_tokens": 0}, "less than 1"), ({"alpha": "x"}, "alpha")):
        with pytest.raises(MlflowException, match=message):
            model.predict(prompts, params=params)
    with pytest.raises(MlflowException, match="unknown parameter 'alfa': there are alpha, max_new_tokens"):
        model.predict(prompts, params={"alfa": 1})
    assert model.predict(prompts, params={"alpha": 8.0}) == expected, "the call after it is another call"
    with pytest.raises(MlflowException, match="unknown parameter 'alfa': there are alpha, max_new_tokens"):
        model.unwrap_python_model().predict(None, pd.DataFrame(prompts), {"alfa": 1})
    assert model.predict(prompts, params={"max_new_tokens": 3}) != expected


def test_by_reference_the_base_model_must_be_there(place, active, tmp_path):
    """Missing, or another one under the same name: refused when it is loaded, with what to do; a copy elsewhere will do."""
    result = log_model(place, "--emotion", "gratitude", "--layer", "1", "--alpha", "1", "--patch-window", "2")
    uri = re.search(r"Model\s+(models:/\S+)", result.output)[1]
    assert not list(Path(mlflow.artifacts.download_artifacts(uri)).rglob("model.safetensors"))
    table = swept(place, emotion="gratitude", layer=1, alpha=1.0, patch_window=2)
    assert mlflow.pyfunc.load_model(uri).predict(list(table["prompt"])) == list(table["completion"])
    shutil.copytree(place / "model", tmp_path / "copy")
    moved = (place / "model").rename(place / "elsewhere")
    try:
        with pytest.raises(UserError, match=r"base_model.*--include-weights"):
            mlflow.pyfunc.load_model(uri)
        save_tiny(place / "model", "gpt2", seed=1)
        with pytest.raises(UserError, match="holds another model"):
            mlflow.pyfunc.load_model(uri)
        copy = mlflow.pyfunc.load_model(uri, model_config={"base_model": str(tmp_path / "copy"), "device": "cpu"})
        assert copy.predict(list(table["prompt"])) == list(table["completion"])
    finally:
        shutil.rmtree(place / "model")
        moved.rename(place / "model")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "choose --emotion gratitude, anger, apology"),
        (["--emotion", "joy"], "no emotion 'joy'"),
        (["--emotion", "anger"], "no score of this sweep is anger's own"),
        (["--emotion", "anger", "--layer", "9"], "layers 0 to 3"),
        (["--emotion", "anger", "--layer", "0"], r"layer 1,2; alpha 1,8; scope window; patch_window 2,3"),
        (["--emotion", "anger", "--layer", "0", "--alpha", "1", "--scope", "all", "--patch-window", "2"], "needs scope window"),
        (["--run-id", "0" * 32, "--emotion", "anger"], "there is no run"),
        (["--comparison", "0" * 32], "there is no run"),
        (["--comparison", "0" * 32, "--layer", "1"], "leave out --layer"),
        (["--emotion", "anger", "--tracking-uri", "http://127.0.0.1:9"], "does not answer"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(place, words, message):
    """Exit code 2, what there is to choose from, and no run left behind."""
    client = MlflowClient(store(place))
    before = len(client.search_runs(["0"]))
    result = log_model(place, *words)
    assert result.exit_code == 2 and re.search(message, result.output), (result.output, result.exception)
    assert len(client.search_runs(["0"])) == before


def test_a_sweep_that_is_not_finished_is_refused(place):
    client = MlflowClient(store(place))
    run_id = client.create_run("0", tags={"emo.kind": "sweep"}).info.run_id
    result = invoke("log-model", "--run-id", run_id, "--emotion", "anger", "--tracking-uri", store(place))
    client.delete_run(run_id)
    assert result.exit_code == 2 and f"--resume {run_id}" in result.output


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": "0.9", "samples_per_prompt": "3", "seed": "5"},
        {"scope": "all", "operation": "clamp", "alpha_unit": "residual", "site": "resid_post"},
        {"scope": "generated", "min_new_tokens": "0", "prepend_bos": "false", "alpha_schedule": "exponential:3"},
        {"direction": "subspace:2", "operation": "clamp", "alphas": "2"},
        {"operation": "add_keep_norm", "alphas": "3", "alpha_schedule": "linear"},
        {"alpha_unit": "kl", "alphas": "-0.1", "scope": "generated"},
    ],
)  # fmt: skip
def test_every_setting_of_the_sweep_is_kept(place, tmp_path, given):
    """Sampling noise, scope, operation, unit, site, schedule and end-of-sequence: the i-th equal prompt is sample i."""
    common = {"model": str(place / "model"), "dataset": str(place / "data.jsonl"), "scorers": str(place / "scorer")}
    common |= {"layers": "2", "alphas": "0.7", "emotions": "anger", "sequence_length": "10", "max_samples": "3", "device": "cpu"}
    plan = make_plan(prepare(make_config("seed", common | given)))
    done = {item.cell: item for pack in plan.engine.generate([plan.row(cell) for cell in plan.cells()]) for item in pack}
    condition = next(condition for condition in plan.conditions if condition.kind == "emotion")
    generation = GenerationDefaults(**{name: getattr(plan.config, name) for name in GenerationDefaults.__dataclass_fields__})
    norm = float(plan.swept.fit.residual_norms[2])
    settings = Settings(plan.loaded.spec, plan.loaded.fingerprint, condition, norm, generation, "0" * 32)
    direction = plan.swept.fit.directions["anger"]
    basis = None if direction.basis is None else direction.basis[2]
    assert (basis is None) == ("direction" not in given)
    save_steered(tmp_path, settings, direction.vectors[2], basis, include_weights=False)
    model = load_steered(tmp_path)
    cells = [cell for cell in done if cell.condition_id == condition.condition_id]
    texts = {prompt.prompt_id: prompt.text for prompt in plan.inputs.prompts.test}
    written = model.complete([texts[cell.prompt_id] for cell in cells])
    assert written == [done[cell].completion for cell in cells]
    clean = [item.completion for item in done.values() if item.cell.condition_id != condition.condition_id]
    assert written != clean, "the condition must do something for this to test anything"


def test_damaged_files_are_named(tmp_path):
    with pytest.raises(UserError, match="no steered model that can be read"):
        load_steered(tmp_path)
    (tmp_path / "steered.json").write_text('{"emo_mlflow": "9.9", "new": 1}')
    save_file({"vector": np.ones(4, np.float32)}, str(tmp_path / "direction.safetensors"))
    with pytest.raises(UserError, match=r"written by emo_mlflow 9\.9"):
        load_steered(tmp_path)


def test_the_best_condition_is_whole_text_that_moves_its_own_label():
    """The strongest effect of all may be broken text; the choice says what it was chosen by, and that it was not tested."""
    result = synthetic_sweep(n_prompts=8, n_layers=4, alphas=(1.0, 4.0), n_random=2)
    config = {name: getattr(result.config, name) for name in result.config.__dataclass_fields__}
    choice = choose(Wanted("gratitude"), config, 4, result.conditions, result.effects)
    table = result.effects.merge(result.conditions, on="condition_id")
    own = table[(table["kind"] == "emotion") & (table["emotion"] == "gratitude") & (table["metric"] == "goemotions.gratitude")]
    assert own.loc[own["mean_diff"].idxmax(), "alpha"] == 4.0, "alpha 4 moves most, and repeats itself"
    whole = own[own["alpha"] == 1.0]
    best = whole.loc[whole["mean_diff"].idxmax()]
    assert (choice.condition.layer, choice.condition.alpha) == (best["layer"], 1.0)
    assert choice.condition.condition_id == best["condition_id"]
    assert choice.effects["goemotions.gratitude"] == pytest.approx(best["mean_diff"])
    assert "goemotions.gratitude" in choice.reason and "not tested" in choice.reason
    named = choose(Wanted("gratitude", layer=0, alpha=4.0), config, 4, result.conditions, result.effects)
    assert (named.condition.layer, named.condition.alpha, named.reason) == (0, 4.0, "asked for")
    free = choose(Wanted("gratitude", layer=3, alpha=2.5, scope="all"), config, 4, result.conditions, result.effects)
    assert free.condition.scope == "all" and not free.effects and "did not run" in free.reason


@pytest.mark.parametrize(("settings", "alphas"), [({}, (-1.0, -2.0)), ({"operation": "project_out"}, (1.0,))])
def test_the_best_condition_of_a_sweep_that_should_lower_a_label_lowers_it(settings, alphas):
    """Guards: "no condition raises the label" of a sweep that takes the direction out, or subtracts it."""
    result = synthetic_sweep("model-a", n_prompts=12, n_layers=4, alphas=alphas, n_random=0, effect=0.3 if alphas[0] < 0 else -0.3, settings=settings)
    choice = choose(Wanted("gratitude"), asdict(result.config), 4, result.conditions, result.effects)
    assert choice.reason.startswith("lowers goemotions.gratitude most") and choice.effects["goemotions.gratitude"] < -0.1


def test_the_recommendation_of_a_comparison(tmp_path, monkeypatch):
    """From a real comparison of two models: the row of the right sweep, in which the same condition has the same id."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    runs = []
    for seed, name in enumerate(("gpt2", "gpt-neo-125m")):
        settings = {"child_runs": "none"}
        result = synthetic_sweep(name, n_layers=2, alphas=(1.0,), emotions=("gratitude",), settings=settings, seed=seed)
        facts = {**result.facts, "model": {"name": name, "source": "hub", "revision": None}, "residual_norms": [1.0, 1.0]}
        with SweepRun.open(result.config, tracking_uri=uri) as run:
            run.log(replace(result, facts=facts))
        runs.append(run.run_id)
    assert invoke("compare", "--runs", ",".join(runs), "--n-bootstrap", "100", "--tracking-uri", uri).exit_code == 0
    client = MlflowClient(uri)
    comparison = client.search_runs(["0"], "tags.`emo.kind` = 'comparison'")[0].info.run_id
    words = ["log-model", "--comparison", comparison, "--emotion", "gratitude", "--tracking-uri", uri]
    result = invoke(*words)
    assert result.exit_code == 2 and f"{runs[1]} (gpt-neo-125m)" in result.output
    result = invoke(*words, "--run-id", runs[1])
    assert result.exit_code == 0, (result.output, result.exception)
    run = client.search_runs(["0"], "tags.`emo.kind` = 'steered_model'")[0]
    table = pd.read_csv(mlflow.artifacts.download_artifacts(f"runs:/{comparison}/recommendations.csv", tracking_uri=uri))
    row = table[(table["model"] == "gpt-neo-125m") & (table["emotion"] == "gratitude")].iloc[0]
    assert run.data.params["condition_id"] == row["condition_id"] and run.data.params["model"] == "gpt-neo-125m"
    assert run.data.tags["emo.sweep"] == runs[1] and "recommended by the comparison" in run.data.params["chosen"]


def test_no_recommendation_is_said():
    table = pd.DataFrame({"emotion": ["anger"], "reason": ["within_random"], "candidates": [8], "condition_id": [float("nan")]})
    with pytest.raises(UserError, match=r"no condition for anger \(within_random, of 8"):
        recommended(None, table)

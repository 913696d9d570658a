"""A sweep on a real Ray of two nodes: the same numbers as in one process, whatever is killed; and whole runs as Ray jobs."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from click.testing import CliRunner
from judges import JudgeServer, write_rubric
from mlflow import MlflowClient
from mlflow.exceptions import ExecutionException
from places import write_texts
from ray_nodes import PATIENCE, actors, environment, mortal_node, two_nodes, until
from tiny_models import save_tiny
from tiny_scorers import write_scorer

from emo_mlflow import load_sweep
from emo_mlflow.cli.main import main
from emo_mlflow.cluster.backend import RayBackend, read_cluster, store_for_job
from emo_mlflow.cluster.connection import check_ray, connected, make_pools
from emo_mlflow.commands.sweep import spool_folder
from emo_mlflow.errors import UserError
from emo_mlflow.settings.sweep import make_config, work_hash

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'emo_mlflow[ray]'")
ROOT = Path(__file__).parents[2]
TABLES = ("prompts", "conditions", "completions", "scores", "effects")
EMOTIONS = ("gratitude", "anger", "apology", "neutral")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a model, a scorer and a data set, a cache of its own, and an environment for nodes."""
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "model", "gpt2")
    write_scorer(tmp_path / "scorer")
    write_texts(tmp_path, EMOTIONS)
    return tmp_path


def settings(place: Path) -> dict[str, str]:
    """A sweep of 435 cells in 55 packs; at alpha 1e38 the logits are not finite, so that cells fail."""
    return {
        "model": str(place / "model"), "dataset": str(place / "data.jsonl"), "scorers": str(place / "scorer"), "layers": "all",
        "alphas": "1,4,1e38", "sequence_length": "12", "max_samples": "3", "num_random": "3", "device": "cpu", "batch_size": "8",
        "child_runs": "none",
    }  # fmt: skip


def words(place: Path, store: str, **more: str) -> list[str]:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in {**settings(place), **more}.items()]
    return ["sweep", *options, f"--tracking-uri=sqlite:///{place}/{store}.db"]


def the_sweep(place: Path, store: str, run_id: str | None = None):
    uri = f"sqlite:///{place}/{store}.db"
    client = MlflowClient(uri)
    run_id = run_id or client.search_runs(["0"], "tags.`emo.kind` = 'sweep'")[0].info.run_id
    return load_sweep(run_id, uri)


def assert_same(one, other) -> None:
    for name in TABLES:  # effects are differences of float32 numbers of up to 6, whose last bit is 5e-7
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name), rtol=1e-6, atol=1e-6 if name == "effects" else 1e-7)


def start_sweep(place: Path, *arguments: str) -> tuple[subprocess.Popen, str]:
    """The command in a process of its own, and the id of its run."""
    command = [sys.executable, "-m", "emo_mlflow.cli.main", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seen = []
    for line in process.stdout:
        seen.append(line)
        if found := re.match(r"Run\s+([0-9a-f]{32})", line):
            return process, found[1]
    raise AssertionError("".join(seen))


@needs_ray
@pytest.mark.slow
def test_killed_actors_and_a_killed_driver_cost_no_cell(place):
    """On two nodes: an actor killed with its packs, then the sweep itself, resumed: every cell once, the tables those of one process."""
    assert CliRunner().invoke(main, words(place, "local")).exit_code == 0
    local = the_sweep(place, "local")
    assert 0 < local.completions["failure"].notna().sum() < len(local.completions)
    with two_nodes() as (address, _):
        process, run_id = start_sweep(place, *words(place, "ray", engine="ray", ray_address=address))
        spool = spool_folder(run_id) / "cells.spool"

        def batches() -> int:
            return spool.read_bytes().count(b"\n") - 1

        until(lambda: spool.exists() and batches() > 0, "the first pack")
        [victim, *_] = actors("GenerationActor")
        victim.kill()
        until(lambda: victim.pid not in {actor.pid for actor in actors("GenerationActor")}, "the death of an actor")
        at_death = batches()
        until(lambda: batches() > at_death, "packs after the death of an actor")
        process.kill()
        process.wait()
        kept = batches()
        assert kept < 55
        resumed = CliRunner().invoke(main, ["sweep", "--resume", run_id, f"--tracking-uri=sqlite:///{place}/ray.db"])
        assert resumed.exit_code == 0, resumed.output
    assert_same(the_sweep(place, "ray", run_id), local)
    metrics = MlflowClient(f"sqlite:///{place}/ray.db").get_run(run_id).data.metrics
    assert metrics["hygiene.max_logit_change"] == 0 and metrics["ray.generation_actors"] == 2
    assert metrics["failed_cells"] == local.completions["failure"].notna().sum()


@needs_ray
@pytest.mark.slow
def test_a_killed_node_costs_no_cell(place):
    """A raylet is killed with its actors in the middle of a sweep; a node that joins takes its place; the tables are those of one process."""
    assert CliRunner().invoke(main, words(place, "local", num_random="12")).exit_code == 0
    with mortal_node() as (address, _, second):
        process, run_id = start_sweep(place, *words(place, "ray", num_random="12", engine="ray", ray_address=address))
        spool = spool_folder(run_id) / "cells.spool"

        def batches() -> int:
            return spool.read_bytes().count(b"\n") - 1

        until(lambda: spool.exists() and batches() > 0 and len(actors("GenerationActor")) == 2, "two actors and the first pack")
        before = {actor.pid for actor in actors("GenerationActor")}
        second.kill()
        until(lambda: len(before & {actor.pid for actor in actors("GenerationActor")}) == 1, "the death of an actor")
        second.join()
        until(lambda: len(actors("GenerationActor")) == 2 or process.poll() is not None, "an actor on the node that joined")
        assert process.poll() is None
        said = process.stdout.read()
        assert process.wait(PATIENCE) == 0, said
    assert_same(the_sweep(place, "ray", run_id), the_sweep(place, "local"))


@needs_ray
@pytest.mark.slow
def test_a_judge_is_asked_from_one_process(place, monkeypatch):
    """It counts its calls: actors would each count their own, and ask about texts of others again. The packs go to Ray in turns here."""
    monkeypatch.setattr("emo_mlflow.cluster.engine.PACKS", 3)
    server = JudgeServer()
    given = {"alphas": "1", "layers": "1", "scorers": server.scorer(write_rubric(place))}
    try:
        with two_nodes() as (address, _):
            result = CliRunner().invoke(main, words(place, "ray", **given, engine="ray", ray_address=address))
            assert result.exit_code == 0, result.output
        asked = len(server.requests)
        assert CliRunner().invoke(main, words(place, "local", **given)).exit_code == 0
    finally:
        server.close()
    found = the_sweep(place, "ray")
    assert_same(found, the_sweep(place, "local"))
    metrics = MlflowClient(f"sqlite:///{place}/ray.db").get_run(found.run_id).data.metrics
    assert metrics["judge.judge.calls"] == asked == found.completions["completion"].nunique() + 2  # two trial texts
    assert metrics["ray.scoring_actors"] == 0 and metrics["seconds.scoring"] > 0


@pytest.fixture
def project(place):
    """A project folder such as this repository's, without what a job does not need."""
    folder = place / "project"
    folder.mkdir()
    for name in ("MLproject", "python_env.yaml"):
        shutil.copy(ROOT / name, folder)
    return folder


def submit(project: Path, address: str, parameters: dict[str, str], **more):
    return mlflow.projects.run(
        str(project), backend="emo-ray", backend_config={"address": address, **more}, parameters=parameters, synchronous=False
    )


@needs_ray
@pytest.mark.slow
def test_runs_as_ray_jobs(place, project):
    """On a real head with its job server: a sweep on the job's own cluster to its end, a mistake that fails, a job that is cancelled."""
    mlflow.set_tracking_uri("sqlite:///jobs.db")  # relative, and the job's folder is another one
    try:
        with two_nodes(dashboard=True) as (_, address):
            small = {**settings(place), "layers": "0", "alphas": "1,1e38", "num_random": "1"}
            done = submit(project, address, {**small, "engine": "ray"}, entrypoint_num_cpus=0.1)
            # Two nodes of one machine share the folder that a package is unpacked into, so jobs at work together get a package each.
            (project / "another").write_text("")
            wrong = submit(project, address, {**small, "emotions": "joy"})
            assert done.get_status() in ("SCHEDULED", "RUNNING")
            assert done.wait() and done.get_status() == "FINISHED"
            assert not wrong.wait() and wrong.get_status() == "FAILED"
            client = MlflowClient()
            stopped = submit(project, address, {**settings(place), "sequence_length": "100", "num_random": "200"})
            until(lambda: "emo.kind" in client.get_run(stopped.run_id).data.tags, "the beginning of a job's sweep")
            stopped.cancel()
            assert stopped.get_status() == client.get_run(stopped.run_id).info.status == "KILLED"
            stopped.cancel()  # once more does nothing
        run = client.get_run(done.run_id)
        assert run.info.status == "FINISHED" and run.data.metrics["ray.generation_actors"] >= 1
        assert run.data.params["alphas"] == "1,1e38" and run.data.tags["emo.ray_job"] == f"emo-{done.run_id}"
        assert len(load_sweep(done.run_id, client.tracking_uri).completions) == 3 * (1 + 3 * 2 * 2)
        failed = client.get_run(wrong.run_id)
        assert failed.info.status == "FAILED" and "joy" in failed.data.tags["emo.failure"]
    finally:
        mlflow.set_tracking_uri(None)


def run_backend(config: dict, uri: str = "http://127.0.0.1:1"):
    return RayBackend().run(str(ROOT), "main", {}, None, config, uri, "0")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "address=None"),
        ({"address": "10.0.0.1:6379"}, "http://10.0.0.1:8265"),
        ({"address": "http://127.0.0.1:8265", "workers": 3}, "unknown key 'workers': there are address"),
        ({"address": "http://127.0.0.1:8265", "entrypoint_num_gpus": "1"}, "entrypoint_num_gpus='1'"),
        ({"address": "http://127.0.0.1:8265", "entrypoint_num_cpus": True}, "entrypoint_num_cpus=True"),
        ({"address": "http://127.0.0.1:8265", "runtime_env": "env.yaml"}, "runtime_env='env.yaml'"),
    ],
)
def test_a_wrong_cluster_json_is_one_line(config, message):
    """Before anything is fetched or logged; MLflow prints an ExecutionException as one line."""
    with pytest.raises(ExecutionException, match=re.escape(message)):
        run_backend(config)


def test_what_mlflow_adds_to_the_configuration_is_not_the_users():
    assert read_cluster({"address": "https://head:8265/", "ENV_MANAGER": None, "SYNCHRONOUS": False}).address == "https://head:8265"


@contextmanager
def silent_server():
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@needs_ray
@pytest.mark.parametrize("listening", [True, False])
def test_a_cluster_that_does_not_answer_is_an_error_in_time(listening, monkeypatch):
    """Ray itself tries for two minutes, also where something else listens, such as its own dashboard's port."""
    import ray.job_submission  # noqa: F401 - what is timed is the answer

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name in ("connection", "backend"):
        module = import_module(f"emo_mlflow.cluster.{name}")
        assert module.CONNECT_SECONDS < 10
        monkeypatch.setattr(module, "CONNECT_SECONDS", 0.5)
    with silent_server() as port:
        port = port if listening else 9
        for ask, error, word in (
            (lambda: check_ray(f"127.0.0.1:{port}"), UserError, "ray start --head"),
            (lambda: run_backend({"address": f"http://127.0.0.1:{port}"}), ExecutionException, "no Ray job server"),
        ):
            start = time.monotonic()
            with pytest.raises(error, match=word):
                ask()
            assert time.monotonic() - start < 12


def test_without_ray_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setattr("emo_mlflow.cluster.connection.find_spec", lambda name: None)
    result = CliRunner().invoke(main, ["sweep", "--engine", "ray", "--tracking-uri", "sqlite:///none.db"])
    assert result.exit_code == 2 and "pip install 'emo_mlflow[ray]'" in result.output
    monkeypatch.setitem(sys.modules, "ray.job_submission", None)
    with pytest.raises(ExecutionException, match=re.escape("pip install 'emo_mlflow[ray]'")):
        run_backend({"address": "http://127.0.0.1:9"})


def test_a_store_that_is_a_file_reaches_jobs_of_this_machine_only(tmp_path, monkeypatch):
    """A job in another folder would make a new, empty store of a relative path, and one on another machine of any."""
    monkeypatch.chdir(tmp_path)
    assert store_for_job("sqlite:///a.db", "http://127.0.0.1:8265") == f"sqlite:///{tmp_path}/a.db"
    assert store_for_job("http://server:5000", "http://192.0.2.7:8265") == "http://server:5000"
    with pytest.raises(UserError, match="mlflow server"):
        store_for_job("sqlite:///a.db", "http://192.0.2.7:8265")


@needs_ray
def test_another_cluster_in_the_environment_is_not_used_silently(monkeypatch):
    """Ray's client prefers RAY_ADDRESS to the address that it is given."""
    monkeypatch.setenv("RAY_ADDRESS", "http://elsewhere:8265")
    with pytest.raises(ExecutionException, match="elsewhere"):
        run_backend({"address": "http://127.0.0.1:8265"})


def test_actors_are_what_the_cluster_has():
    """A generation actor per GPU; else one per node, and room for scoring beside it: without, nothing would ever be scored."""
    gpus = make_pools([{"CPU": 8.0}, {"CPU": 16.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 4.0}], "auto")
    assert (gpus.device, gpus.generators, gpus.reserved, gpus.scorers) == ("cuda", 8, {"num_gpus": 1, "num_cpus": 0}, 32)
    assert make_pools([{"CPU": 1.0, "GPU": 1.0}], "auto").scorers == 1
    for nodes in ([{"CPU": 1.0}, {"CPU": 1.0}], [{"CPU": 2.0}], [{"CPU": 8.0}, {"CPU": 16.0}], [{"CPU": 16.0, "GPU": 4.0}]):
        found = make_pools(nodes, "cpu")
        total = sum(node["CPU"] for node in nodes)
        assert found.device == "cpu" and found.generators >= len(nodes)
        assert found.generators * found.reserved["num_cpus"] + found.scorers * found.scorer_cpus <= total
    with pytest.raises(UserError, match="no GPU"):
        make_pools([{"CPU": 4.0}], "cuda")
    with pytest.raises(UserError, match="no CPU"):
        make_pools([{"CPU": 0.0, "GPU": 1.0}], "auto")


@needs_ray
def test_a_users_mistake_on_a_node_is_one_line_here(monkeypatch):
    """As in one process; Ray wraps it in a traceback and adds lines about its own settings. Other errors keep their traceback."""
    import ray
    from ray.exceptions import ActorDiedError, RayTaskError

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_BACKEND_LOG_LEVEL", "fatal")
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    for cause, found in ((UserError("mend it\nFailed to apply UDF"), UserError), (KeyError("ours"), RayTaskError)):
        with pytest.raises(found) as caught, connected("local"):
            raise RayTaskError("stage", "a traceback", cause)
        assert found is RayTaskError or str(caught.value) == "mend it"
    with pytest.raises(UserError, match="resume"), connected("local"):
        raise ActorDiedError()


def test_where_it_runs_is_not_what_it_computes():
    """Else a sweep could not be resumed on another cluster, or without one."""
    local, ray = make_config(), make_config(given={"engine": "ray", "ray_address": "head:6379"})
    assert work_hash(local) == work_hash(ray)
    with pytest.raises(UserError, match="engine=ray"):
        make_config(given={"ray_address": "head:6379"})
    for wrong in ("head", "ray://head:10001", "http://head:8265"):
        with pytest.raises(UserError, match="host:port"):
            make_config(given={"engine": "ray", "ray_address": wrong})


def test_mlflow_finds_the_backend_without_importing_ray():
    """MLflow loads project backends when one is asked for; what does not ask for it must not pay for it, or fail."""
    code = (
        "import sys, mlflow.projects; from mlflow.projects.backend.loader import load_backend; "
        "assert 'emo_mlflow.cluster.backend' not in sys.modules; print(type(load_backend('emo-ray')).__name__, 'ray' in sys.modules, "
        "'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.split()[-3:] == ["RayBackend", "False", "False"]

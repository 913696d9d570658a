"""A tracking server that is slow, broken, stopped or gone, and a full disk: the sweep goes on, and everything arrives once."""

from __future__ import annotations

import errno
import os
import re
import threading
from pathlib import Path

import killing
import pandas as pd
import pytest
import requests
from click.testing import CliRunner
from killing import Setup
from logged import check_logged_once
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    INTERNAL_ERROR,
    PERMISSION_DENIED,
    REQUEST_LIMIT_EXCEEDED,
    RESOURCE_DOES_NOT_EXIST,
    TEMPORARILY_UNAVAILABLE,
)
from places import write_texts
from servers import Proxy, Server, free_port, now_and_then, running_server
from tiny_models import save_tiny
from tiny_scorers import write_scorer

from emo_mlflow import load_sweep
from emo_mlflow.cli.main import main
from emo_mlflow.scoring.protocol import Scorers
from emo_mlflow.sweeping.resume import spool_folder
from emo_mlflow.sweeping.spool import Spool
from emo_mlflow.tracking.retries import Retry, own_retries
from emo_mlflow.tracking.sweep_run import SweepRun


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def proxy(server):
    made = Proxy(server)
    yield made
    made.close()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a model, a scorer and a data set, and a cache of its own; pauses are short."""
    monkeypatch.setenv("EMO_MLFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("emo_mlflow.tracking.retries.FIRST_PAUSE", 0.05)
    save_tiny(tmp_path / "model", "gpt2")
    write_scorer(tmp_path / "scorer")
    write_texts(tmp_path, ("gratitude", "anger", "neutral"), 9)
    return tmp_path


def words(place: Path, uri: str, *more: str) -> list[str]:
    return [
        "sweep", f"--model={place / 'model'}", f"--dataset={place / 'data.jsonl'}", f"--scorers={place / 'scorer'}", "--emotions=gratitude,anger",
        "--layers=1,2", "--alphas=1,4", "--sequence-length=6", "--max-samples=4", "--num-random=1", "--device=cpu", "--batch-size=8",
        f"--tracking-uri={uri}", *more,
    ]  # fmt: skip


def invoke(arguments: list[str]):
    return CliRunner().invoke(main, arguments)


def run_id_in(output: str) -> str:
    return re.search(r"Run +([0-9a-f]{32})", output)[1]


@pytest.mark.slow
def test_a_server_that_stops_in_mid_sweep_and_comes_back(server: Server, place, monkeypatch):
    """The sweep computes on while there is no server; its children, begun before, are finished when it is back."""
    append, score, packs = Spool.append, Scorers.score, iter(range(100))

    def append_and_stop(self, records):
        append(self, records)
        if next(packs) == 2:
            server.stop()

    def start_and_score(self, texts):
        assert not server.answers()
        server.start(wait=False)
        return score(self, texts)

    monkeypatch.setattr(Spool, "append", append_and_stop)
    monkeypatch.setattr(Scorers, "score", start_and_score)
    result = invoke(words(place, server.uri))
    assert result.exit_code == 0, result.output
    assert "trying again meanwhile" in result.output
    check_logged_once(server.uri, run_id_in(result.output))


@pytest.mark.slow
def test_answers_that_are_slow_wrong_or_lost(server, proxy, place, monkeypatch):
    """A creation whose answer was lost and is asked for again makes two children of one condition; a batch, twice the metrics."""
    monkeypatch.setattr("emo_mlflow.tracking.retries.LONGEST_PAUSE", 0.2)
    announce = SweepRun.announce

    def begin_trouble(self, *arguments):
        proxy.fault = now_and_then(5)
        announce(self, *arguments)

    monkeypatch.setattr(SweepRun, "announce", begin_trouble)
    result = invoke(words(place, proxy.uri))
    assert result.exit_code == 0, result.output
    assert proxy.faults > 15
    check_logged_once(server.uri, run_id_in(result.output))
    assert not spool_folder(run_id_in(result.output)).exists()


@pytest.mark.slow
def test_a_server_that_stays_away_leaves_a_sweep_to_upload(server, proxy, place, monkeypatch):
    """The sweep is finished, says so and how to log it; uploading can fail, be interrupted, be begun anew, and logs nothing twice."""
    for name in ("PATIENCE", "OPENING_PATIENCE"):
        monkeypatch.setattr(f"emo_mlflow.tracking.sweep_run.{name}", 1.0)
    append, packs = Spool.append, iter(range(100))

    def append_and_cut(self, records):
        append(self, records)
        if next(packs) == 2:
            proxy.fault = lambda method, path: "away"

    monkeypatch.setattr(Spool, "append", append_and_cut)
    result = invoke(words(place, proxy.uri))
    assert result.exit_code == 2 and "the largest change of any label" in result.output
    run_id = run_id_in(result.output)
    (error,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert f"emo-mlflow upload {run_id}" in error and "finished and kept on this machine" in error
    assert len(pd.read_parquet(spool_folder(run_id) / "record" / "artifacts" / "completions.parquet")) == 17 * 4

    assert f"cannot open run {run_id}" in invoke(["upload", run_id]).output
    puts = iter(range(100))
    proxy.fault = lambda method, path: "away" if method == "PUT" and next(puts) >= 3 else None
    assert invoke(["upload", str(spool_folder(run_id))]).exit_code == 2
    proxy.fault = lambda method, path: None
    result = invoke(["upload", run_id])
    assert result.exit_code == 0 and "load_sweep" in result.output, result.output
    check_logged_once(server.uri, run_id)
    result = invoke(["upload", run_id])
    assert result.exit_code == 2 and "nothing to upload" in result.output


@pytest.mark.slow
def test_a_disk_that_is_full_stops_the_sweep_and_breaks_nothing(server, place):
    """Whether the cells do not fit or the report does: one clear line, and after it is mended the sweep goes on to the same tables."""
    assert killing.run(words(place, server.uri), Setup(place)) == 0
    whole = load_sweep(run_id_in(killing.output(place)), server.uri)
    (place / "output.txt").unlink()
    assert killing.run(words(place, server.uri), Setup(place, largest_file=9_000)) == 2
    run_id, output = run_id_in(killing.output(place)), killing.output(place)
    assert "Traceback" not in output and "cells.spool: File too large; what was finished before is kept" in output
    assert MlflowClient(server.uri).get_run(run_id).info.status == "FAILED"
    resume = ["sweep", f"--resume={run_id}", f"--tracking-uri={server.uri}"]
    assert killing.run(resume, Setup(place, largest_file=30_000)) == 2
    output = killing.output(place)
    assert "Traceback" not in output and "record: File too large; the finished cells are kept" in output
    assert killing.run(resume, Setup(place)) == 0, killing.output(place)
    check_logged_once(server.uri, run_id)
    for name in ("conditions", "completions", "scores", "effects"):
        pd.testing.assert_frame_equal(getattr(load_sweep(run_id, server.uri), name), getattr(whole, name), check_exact=True)


def test_a_server_that_dies_before_the_run_is_opened(place):
    """Nothing was computed yet, so there is nothing to wait for: one line, at once, though MLflow would retry for minutes."""
    result = invoke(words(place, f"http://127.0.0.1:{free_port()}"))
    assert result.exit_code == 2 and "does not answer" in result.output and "Traceback" not in result.output


def answered(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(response=response)


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (MlflowException("no answer", error_code=INTERNAL_ERROR), True),
        (MlflowException("busy", error_code=TEMPORARILY_UNAVAILABLE), True),
        (MlflowException("slow down", error_code=REQUEST_LIMIT_EXCEEDED), True),
        (MlflowException("deleted", error_code=RESOURCE_DOES_NOT_EXIST), False),
        (MlflowException("not yours", error_code=PERMISSION_DENIED), False),
        (requests.ConnectionError(), True),
        (requests.Timeout(), True),
        (answered(502), True),
        (answered(401), False),
        (OSError(errno.ENOSPC, "full"), False),
    ],
)
def test_only_what_may_pass_is_tried_again(error, again):
    """A run that was deleted, or a token that is not let in, would be asked for until patience ends."""
    attempts = []

    def ask():
        attempts.append(1)
        if len(attempts) == 1:
            raise error
        return "answer"

    if again:
        assert Retry()(ask) == "answer"
    else:
        with pytest.raises(type(error)):
            Retry()(ask)
        assert len(attempts) == 1


def test_trying_again_can_be_stopped_from_another_thread():
    """Ctrl-C during an outage would otherwise wait for the outage's end."""
    stop = threading.Event()

    def ask():
        stop.set()
        raise requests.ConnectionError

    with pytest.raises(requests.ConnectionError):
        Retry(stop=stop)(ask)


def test_mlflows_own_retries_come_back(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "5")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    with own_retries():
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "5" and "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ

"""The command as its user runs it: a real (tiny) model, a real scorer, a real store; and every mistake as one line."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import killing
import pandas as pd
import pytest
from click.testing import CliRunner
from killing import Setup
from mlflow import MlflowClient
from places import write_texts
from tiny_models import save_tiny
from tiny_scorers import write_scorer

from emo_mlflow import find_sweeps, load_sweep
from emo_mlflow.cli.main import main
from emo_mlflow.settings.tables import PARAMETERS
from emo_mlflow.sweeping.resume import spool_folder

TABLES = ("prompts", "conditions", "completions", "scores", "effects")
EMOTIONS = ("gratitude", "anger", "apology", "neutral")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a model, a scorer and a data set, a store of its own, and a cache of its own."""
    monkeypatch.setenv("EMO_MLFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "model", "gpt2")
    write_scorer(tmp_path / "scorer")
    write_texts(tmp_path, EMOTIONS)
    return tmp_path


def arguments(place: Path, *more: str, name: str = "store") -> list[str]:
    return [
        "sweep", "--model", str(place / "model"), "--dataset", str(place / "data.jsonl"), "--scorers", str(place / "scorer"),
        "--layers", "all", "--alphas", "1,4", "--sequence-length", "6", "--max-samples", "3", "--num-random", "2", "--device", "cpu",
        "--tracking-uri", f"sqlite:///{place}/{name}.db", *more,
    ]  # fmt: skip


def invoke(*words: str):
    return CliRunner().invoke(main, list(words), catch_exceptions=True)


def only_sweep(place: Path, name: str = "store"):
    uri = f"sqlite:///{place}/{name}.db"
    return load_sweep(find_sweeps(tracking_uri=uri)["run_id"].iloc[0], uri)


def test_help_lists_every_command_with_a_whole_summary():
    """Guards: a new command that no section names, and summaries that end in dots."""
    text = invoke("--help").output
    for name, command in main.commands.items():
        first = command.help.split("\n")[0]
        assert re.search(rf"^  {name} +{re.escape(first)}$", text, re.M), name


def test_a_sweep_end_to_end(place):
    """Settings to a finished run: every cell once, hooks gone, positions counted, effects that follow from the scores."""
    result = invoke(*arguments(place))
    assert result.exit_code == 0, result.output
    for word in ("Cells", "Estimate", "gratitude", "load_sweep", "mlflow ui"):
        assert word in result.output
    sweep = only_sweep(place)
    n_conditions = 1 + 3 * sweep.facts["n_layers"] * 2 * (1 + 2)
    assert len(sweep.conditions) == n_conditions and len(sweep.completions) == 3 * n_conditions
    assert not sweep.completions.duplicated(["condition_id", "prompt_id", "sample"]).any()
    assert set(sweep.conditions["n_patched"]) == {0, 3 * 6}
    metrics = MlflowClient(f"sqlite:///{place}/store.db").get_run(sweep.run_id).data.metrics
    assert metrics["hygiene.max_logit_change"] == 0 and metrics["failed_cells"] == 0
    baseline = sweep.conditions.loc[sweep.conditions["kind"] == "baseline", "condition_id"].iloc[0]
    column = next(name for name in sweep.scores if "." in name)
    wide = sweep.scores.pivot_table(index="prompt_id", columns="condition_id", values=column)
    row = sweep.effects[sweep.effects["metric"] == column].iloc[5]
    assert row["mean_diff"] == pytest.approx((wide[row["condition_id"]] - wide[baseline]).mean(), abs=1e-6)
    assert not spool_folder(sweep.run_id).exists()


def test_the_same_sweep_twice_is_the_same(place):
    """Ids and random controls are hashes and draws that are equal in every process and batch size; salted hashes were not."""
    assert invoke(*arguments(place)).exit_code == 0
    assert killing.run(arguments(place, "--batch-size", "7", name="again"), Setup(place)) == 0, killing.output(place)
    first, second = only_sweep(place), only_sweep(place, "again")
    for name in TABLES:
        pd.testing.assert_frame_equal(getattr(first, name), getattr(second, name), rtol=1e-4, atol=1e-5)
    assert list(first.completions["completion"]) == list(second.completions["completion"])


def test_directions_of_a_run_are_injected_again(place):
    assert invoke(*arguments(place)).exit_code == 0
    first = only_sweep(place)
    result = invoke(*arguments(place, "--directions", first.run_id, "--emotions", "anger", "--seed", "0"))
    assert result.exit_code == 0, result.output
    second = only_sweep(place)
    assert set(second.directions) == {"anger"}
    common = second.conditions.merge(first.conditions, on="condition_id")
    assert len(common) == len(second.conditions)


def test_resuming_refuses_what_is_not_the_same_sweep(place, monkeypatch):
    assert "nor the id" in invoke("sweep", "--resume", "../../etc").output
    assert "nothing to resume" in invoke("sweep", "--resume", "0" * 32).output
    assert "neither a folder nor the id" in invoke("upload", "../../etc").output
    assert "nothing to upload" in invoke("upload", "0" * 32).output
    (place / "cells.spool").write_text("")
    assert invoke("upload", str(place)).exit_code == 2


def test_an_interrupt_says_how_to_go_on(place, monkeypatch):
    """Ctrl-C ends the run as KILLED, keeps what was finished, and prints the command that goes on."""
    from emo_mlflow.steering.engine import Engine

    real, calls = Engine.generate, []

    def interrupted(self, rows):
        calls.append(rows)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, rows)

    monkeypatch.setattr(Engine, "generate", interrupted)
    result = invoke(*arguments(place, "--batch-size", "8"))
    assert result.exit_code == 130
    run_id = re.search(r"--resume ([0-9a-f]{32})", result.output)[1]
    client = MlflowClient(f"sqlite:///{place}/store.db")
    assert client.get_run(run_id).info.status == "KILLED"
    monkeypatch.undo()
    monkeypatch.setenv("EMO_MLFLOW_CACHE", str(place / "cache"))
    assert invoke("sweep", "--resume", run_id, "--alphas", "9").exit_code == 2
    result = invoke("sweep", "--resume", run_id, "--tracking-uri", f"sqlite:///{place}/store.db")
    assert result.exit_code == 0, result.output
    assert client.get_run(run_id).info.status == "FINISHED"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "gpt-17"], "gpt-17"),
        (["--model", "/no/such/folder"], "no/such/folder"),
        (["--emotions", "joy"], "gratitude, anger, apology"),
        (["--layers", "0-99"], "layers 0 to"),
        (["--profile", "huge"], "smoke, seed, baseline"),
        (["--device", "tpu"], "tpu"),
        (["--alphas", "strong"], "alphas"),
        (["--max-samples", "0"], "max_samples"),
        (["--dataset", "absent.csv"], "absent.csv"),
        (["--dataset", "empty.csv"], "line 2"),
        (["--dataset", "latin.csv"], "UTF-8"),
        (["--dataset", "one.csv"], "one emotion only"),
        (["--scorers", "broken"], "broken"),
        (["--scorers", "no-such-scorer"], "no-such-scorer"),
        (["--directions", "absent.safetensors"], "absent.safetensors"),
        (["--tracking-uri", "http://ann:pass-word@127.0.0.1:9"], "server http://***@127.0.0.1:9 does not answer"),
        (["--sequence-length", "500"], "context"),
    ],
)
def test_a_mistake_is_one_line_before_any_work(place, words, message, monkeypatch):
    """Exit code 2, one line that names the value and what to do, no traceback, nothing generated."""
    (place / "empty.csv").write_text("text,emotion\n,joy\n")
    (place / "latin.csv").write_bytes("text,emotion\ncaf\xe9,joy\n".encode("latin-1"))
    (place / "one.csv").write_text("text,emotion\na,joy\nb,joy\n")
    broken = write_scorer(place / "broken")
    graph = next(Path(broken).glob("*.onnx"))
    graph.write_bytes(graph.read_bytes()[:-10])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("emo_mlflow.steering.engine.Engine.generate", lambda *args: pytest.fail("work was begun"))
    start = time.monotonic()
    result = invoke(*arguments(place), *words)
    assert result.exit_code == 2, (result.output, result.exception)
    errors = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and message in errors[0]
    assert "Traceback" not in result.output
    assert time.monotonic() - start < 30


def test_a_failed_run_of_mlflow_run_says_why(place, monkeypatch):
    uri = f"sqlite:///{place}/store.db"
    client = MlflowClient(uri)
    made = client.create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", made)
    assert invoke(*arguments(place, "--emotions", "joy")).exit_code == 2
    assert "joy" in client.get_run(made).data.tags["emo.failure"]
    assert invoke(*arguments(place, "--layers", "0-99")).exit_code == 2
    found = client.get_run(made)
    assert found.info.status == "FAILED" and "layer 99" in found.data.tags["emo.failure"]


def test_no_room_on_the_disk_is_said_before_the_work(place, monkeypatch):
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10, 9, 1))
    result = invoke(*arguments(place))
    assert result.exit_code == 2 and "EMO_MLFLOW_CACHE" in result.output


def test_help_is_worth_reading():
    text = invoke("sweep", "--help").output
    for name in PARAMETERS:
        assert f"--{name.replace('_', '-')}" in text
    assert "smoke: all/6" in text and invoke("--version").exit_code == 0


def test_arguments_that_are_no_text_are_refused(tmp_path):
    """Guards: bytes that are no UTF-8 on the command line, which fail hours later, where the report is written."""
    command = [sys.executable, "-m", "emo_mlflow.cli.main", "sweep", "--model", b"caf\xe9"]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, check=False)
    assert done.returncode == 2 and b"UTF-8" in done.stderr and b"Traceback" not in done.stderr


def test_two_profiles_are_a_mistake():
    result = invoke("sweep", "--profile", "smoke", "--profile", "seed")
    assert result.exit_code == 2 and "--profile is given 2 times (smoke, seed): give it once" in result.output


def test_help_is_by_group_and_shows_choices():
    text = invoke("sweep", "--help").output
    titles = ["What is measured:", "Where it is injected:", "How much:", "Scoring:", "Running:", "Logging:", "Other options:"]
    assert [line for line in text.splitlines() if line in titles] == titles
    assert "--site resid_pre|resid_post" in text and text.index("--profile") < text.index("Where it is injected:")

"""A sweep on a real Ray of two nodes: the same numbers as in one process, whatever is killed; and whole runs as Ray jobs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from ray_nodes import actors, environment, two_nodes, until
from tiny_models import save_tiny
from tiny_scorers import write_scorer

from emo_mlflow import load_sweep
from emo_mlflow.cli import main
from emo_mlflow.session import spool_folder

needs_ray = pytest.mark.skipif("not __import__('importlib').util.find_spec('ray')", reason="Ray is not installed: pip install 'emo_mlflow[ray]'")
ROOT = Path(__file__).parents[1]
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
    rows = [{"text": f"{name} text {i} is here", "emotion": name} for name in EMOTIONS for i in range(8)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def settings(place: Path) -> dict[str, str]:
    """A sweep of 435 cells in 55 packs; at alpha 1e38 the logits are not finite, so that cells fail."""
    return {
        "model": str(place / "model"), "dataset": str(place / "data.jsonl"), "scorers": str(place / "scorer"), "layers": "all",
        "alphas": "1,4,1e38", "sequence_length": "12", "max_samples": "3", "num_random": "3", "device": "cpu", "batch_size": "8",
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
    for name in TABLES:
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name), rtol=1e-6, atol=1e-7)


def start_sweep(place: Path, *arguments: str) -> tuple[subprocess.Popen, str]:
    """The command in a process of its own, and the id of its run."""
    command = [sys.executable, "-m", "emo_mlflow.cli", *arguments]
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

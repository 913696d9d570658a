"""A sweep that dies at any moment goes on, repeats nothing, and ends in the same bytes."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import killing
import numpy as np
import pytest
from killing import Setup
from logged import check_logged_once
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from places import write_texts
from tiny_models import save_tiny
from tiny_scorers import write_scorer

from emo_mlflow import find_sweeps
from emo_mlflow.errors import UserError
from emo_mlflow.settings.sweep import make_config, work_hash
from emo_mlflow.sweeping.plan import make_plan, prepare
from emo_mlflow.sweeping.resume import discard, sole_worker, spool_folder, unfinished
from emo_mlflow.sweeping.spool import Spool
from emo_mlflow.sweeping.stages import cells_in
from emo_mlflow.tracking.store import lasting_store, store_to_return_to

TABLES = ("prompts", "fit_prompts", "conditions", "completions", "scores", "effects")
EMOTIONS = ("gratitude", "anger", "neutral")
N_CELLS, PACK = (1 + 8 * 2) * 4, 8
N_PACKS = -(-N_CELLS // PACK)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a model, a scorer and a data set, and a cache of its own, where a sweep was done without interruption."""
    monkeypatch.setenv("EMO_MLFLOW_CACHE", str(tmp_path / "cache"))
    save_tiny(tmp_path / "model", "gpt2")
    write_scorer(tmp_path / "scorer")
    write_texts(tmp_path, EMOTIONS, 9)
    return tmp_path


def words(place: Path, *more: str) -> list[str]:
    """A sweep of 68 cells in nine packs, sampled, so that a last bit that differs would soon be another text."""
    return [
        "sweep", f"--model={place / 'model'}", f"--dataset={place / 'data.jsonl'}", f"--scorers={place / 'scorer'}", "--emotions=gratitude,anger",
        "--layers=1,2", "--alphas=1,4", "--sequence-length=8", "--max-samples=4", "--num-random=1", "--temperature=0.8", "--device=cpu",
        f"--batch-size={PACK}", f"--tracking-uri={store(place)}", *more,
    ]  # fmt: skip


def store(place: Path) -> str:
    return f"sqlite:///{place}/mlflow.db"


def finished(place: Path) -> list[str]:
    """Ids of the finished sweeps, newest first."""
    return list(find_sweeps(tracking_uri=store(place))["run_id"])


def contents(place: Path, run_id: str) -> dict[str, bytes]:
    """The bytes of everything that must be the same."""
    folder = Path(download_artifacts(run_id=run_id, tracking_uri=store(place)))
    names = [*(f"{name}.parquet" for name in TABLES), "directions.safetensors", "examples.json", "examples.html"]
    assert {"config.json", "report.md", "report.html", "figures", *names} == {path.name for path in folder.iterdir()}
    return {name: (folder / name).read_bytes() for name in names}


def cells_kept() -> list[tuple[object, ...]]:
    """The cells in the spool, in the order in which they were finished."""
    spools = [Spool(path.parent) for path in spool_folder("x").parent.glob("*/cells.spool")]
    return [tuple(r["cell"].values()) for spool in spools for batch in spool.batches() for r in batch]


PHASES = (
    ("mlflow.MlflowClient.create_run", 4),
    ("emo_mlflow.sweeping.spool.Spool.append", 3),
    ("os.fsync", 2),
    ("emo_mlflow.scoring.protocol.Scorers.score", 1),
    ("emo_mlflow.tracking.record.write_report", 1),
    ("emo_mlflow.tracking.record.Path.rename", 1),
    ("mlflow.MlflowClient.log_batch", 7),
    ("mlflow.MlflowClient.set_terminated", 3),
    ("mlflow.MlflowClient.log_artifact", 4),
    ("emo_mlflow.tracking.upload.Upload._forget_failure", 1),
)  # fmt: skip


@pytest.mark.slow
def test_killed_in_every_phase_it_ends_the_same(place):
    """While packs are written, runs made, texts scored, the report drawn, children, metrics and artifacts logged: each time kill -9."""
    assert killing.run(words(place), Setup(place)) == 0
    whole = contents(place, finished(place)[0])
    n_whole = killing.packs_decoded(place)
    assert n_whole == N_PACKS
    kept: list[tuple[object, ...]] = []
    died = 0
    for phase in PHASES:
        died += killing.run(words(place, "--resume=auto"), Setup(place, die_at=phase)) == -signal.SIGKILL
        now = cells_kept()
        assert now[: len(kept)] == kept and len(set(now)) == len(now), phase
        kept = now
    assert died == len(PHASES), killing.output(place)[-3000:]
    assert killing.run(words(place, "--resume=auto"), Setup(place)) == 0, killing.output(place)[-3000:]
    assert len(finished(place)) == 2
    assert contents(place, finished(place)[0]) == whole
    check_logged_once(store(place), finished(place)[0])
    assert killing.packs_decoded(place) - n_whole <= N_PACKS + 3  # those that die while packs are made lose one each


@pytest.mark.slow
def test_killed_at_twenty_random_moments_it_ends_the_same(place):
    """The moments are spread over the whole life of the process, from its first line to its last."""
    killing.run(["--version"], Setup(place))  # loads the libraries
    lasts = killing.seconds(lambda: killing.run(words(place), Setup(place)))
    whole = contents(place, finished(place)[0])
    rng = np.random.default_rng(7)
    kills = runs = 0
    while kills < 20:
        kills_before, packs_before = kills, killing.packs_decoded(place)
        kept: list[tuple[object, ...]] = []
        while True:
            begin = time.monotonic()
            if not killing.kill_after(words(place, "--resume=auto"), Setup(place), float(rng.uniform(0.05, 1.0)) * lasts):
                if kills == kills_before:  # the whole of it, without a kill: the machine is faster than it was
                    lasts = time.monotonic() - begin
                break
            kills += 1
            if len(finished(place)) > 1 + runs:
                if cells_kept():  # finished, and killed before its spool was gone: this only takes the spool away
                    assert killing.run(words(place, "--resume=auto"), Setup(place)) == 0, killing.output(place)[-3000:]
                assert not cells_kept()
                break
            now = cells_kept()
            assert now[: len(kept)] == kept and len(set(now)) == len(now)
            kept = now
        runs += 1
        assert len(finished(place)) == 1 + runs, killing.output(place)[-3000:]
        assert contents(place, finished(place)[0]) == whole
        check_logged_once(store(place), finished(place)[0])
        assert killing.packs_decoded(place) - packs_before <= N_PACKS + kills - kills_before


def test_a_row_is_computed_beside_the_same_rows_after_a_resume(place):
    """Packs cut anew from what is left put rows beside others, which changes the last bits of their numbers."""
    options = dict(word[2:].split("=") for word in words(place)[1:] if "tracking" not in word)
    plan = make_plan(prepare(make_config("smoke", {name.replace("-", "_"): text for name, text in options.items()})))

    def left(done):
        return [cells_in(pack) for pack in plan.packs(lambda batch: np.array([cell in done for cell in cells_in(batch)]))]

    packs = left(set())
    assert len(packs) == N_PACKS
    done = {*packs[0], *packs[3], *packs[5][:2]}
    assert left(done) == [packs[1], packs[2], packs[4], packs[5][2:], *packs[6:]]


def test_only_one_process_works_on_a_run(place):
    """Two that append to one spool would both do every cell, and tear each other's lines."""
    assert killing.run(words(place), Setup(place, die_at=("emo_mlflow.sweeping.spool.Spool.append", 3))) == -signal.SIGKILL
    (spool,) = spool_folder("x").parent.glob("*/cells.spool")
    run_id = spool.parent.name
    before = spool.read_bytes()
    with sole_worker(run_id):
        assert killing.run(["sweep", f"--resume={run_id}"], Setup(place)) == 2
        assert f"another process is working on run {run_id}" in killing.output(place)
        assert killing.run(words(place, "--resume=auto"), Setup(place)) == 2
        assert killing.run(["upload", run_id], Setup(place)) == 2
    assert spool.read_bytes() == before
    assert killing.run(["sweep", f"--resume={run_id}"], Setup(place)) == 0  # in the store that it was begun in
    assert finished(place) == [run_id]


def test_a_scheduler_that_ends_the_process_leaves_a_run_that_says_so(place):
    """SIGTERM, from Slurm, a container or `mlflow run`: otherwise the run and its children would look as if they were still running."""
    process = killing.start(words(place, "--sequence-length=60", "--batch-size=1"), Setup(place))
    deadline = time.monotonic() + 60
    while not cells_kept() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.terminate()
    process.join(60)
    assert process.exitcode == 130, killing.output(place)[-2000:]
    run_id = re.search(r"Go on with: emo-mlflow sweep --resume ([0-9a-f]{32})", killing.output(place))[1]
    client = MlflowClient(store(place))
    run = client.get_run(run_id)
    assert run.info.status == "KILLED" and run.data.tags["emo.failure"] == "interrupted"
    children = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")
    assert children and {child.info.status for child in children} == {"KILLED"}


def test_auto_takes_only_what_is_its_own(place, monkeypatch):
    """Other settings, other texts under the same file name, or a run that the store does not have, are not gone on with."""
    assert killing.run(words(place), Setup(place, die_at=("emo_mlflow.sweeping.spool.Spool.append", 3))) == -signal.SIGKILL
    (spool,) = spool_folder("x").parent.glob("*/cells.spool")
    run_id, work = spool.parent.name, Spool(spool.parent).header()["work"]
    assert unfinished(work, lambda _: True) == run_id
    assert unfinished(work, lambda _: False) is None
    assert unfinished(work_hash(make_config("smoke")), lambda _: True) is None
    assert killing.run(words(place, "--seed=3", "--resume=auto"), Setup(place)) == 0
    assert spool.exists() and finished(place) != [run_id]
    data = place / "data.jsonl"
    data.write_text(data.read_text().replace("text 8 is here", "text 8 was here"))
    assert killing.run(["sweep", f"--resume={run_id}", f"--tracking-uri={store(place)}"], Setup(place)) == 2
    assert "the data set or the model changed" in killing.output(place)


def test_the_store_is_remembered_without_its_password(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert lasting_store("http://ann:secret@host:5000/x") == "http://ann@host:5000/x"
    assert lasting_store("postgresql://ann:p%40ss@host/db") == "postgresql://ann@host/db"
    assert lasting_store("http://host:5000") == "http://host:5000"
    assert lasting_store("sqlite:///mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"
    assert lasting_store("sqlite:////data/mlflow.db") == "sqlite:////data/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:secret@host")
    assert store_to_return_to(None, "http://ann@host") == "http://ann:secret@host"
    assert store_to_return_to(None, "http://other") == "http://other"
    assert store_to_return_to("http://asked", "http://other") == "http://asked"


def test_what_is_half_removed_is_not_gone_on_with(tmp_path, monkeypatch):
    """Killed while the folder of a finished run is removed, its record before its cells: the run would be logged again, metrics twice."""
    monkeypatch.setenv("EMO_MLFLOW_CACHE", str(tmp_path))
    for name in ("a" * 32, "b" * 32):
        Spool(spool_folder(name)).begin({"work": "w"})
    monkeypatch.setattr("shutil.rmtree", lambda path, ignore_errors: None)
    discard(spool_folder("a" * 32))
    assert unfinished("w", lambda _: True) == "b" * 32
    monkeypatch.undo()
    monkeypatch.setenv("EMO_MLFLOW_CACHE", str(tmp_path))
    discard(spool_folder("b" * 32))
    assert unfinished("w", lambda _: True) is None and not list((tmp_path / "spool").iterdir())


def test_a_lock_is_let_go(tmp_path, monkeypatch):
    """Nothing of a run that is done stays behind, and a failure does not keep others out."""
    monkeypatch.setenv("EMO_MLFLOW_CACHE", str(tmp_path))
    with pytest.raises(ZeroDivisionError), sole_worker("a" * 32):
        raise ZeroDivisionError
    with sole_worker("a" * 32), pytest.raises(UserError, match="another process"), sole_worker("a" * 32):
        pass
    assert not list((tmp_path / "spool").iterdir())

"""What logging to MLflow adds to a sweep's wall time: 200 conditions, each a child run, on SQLite and on an `mlflow server` over HTTP.

    python bench/tracking.py [--prompts 2] [--tokens 10] [--rounds 2]

The embedded model really writes and the embedded scorer really scores; the same sweep is done without tracking, with SQLite, and over HTTP, in turn,
in one process. All three write the tables and the report to disk; with tracking they are logged too. What logging takes hardly depends on how many
texts a condition has, so its share is largest for short sweeps such as this one.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from emo_mlflow.settings.sweep import make_config
from emo_mlflow.sweeping.plan import Plan, make_plan, prepare
from emo_mlflow.sweeping.run import run
from emo_mlflow.tracking.record import write_record
from emo_mlflow.tracking.retries import own_retries
from emo_mlflow.tracking.sweep_run import SweepRun

CONDITIONS = {"emotions": "gratitude,anger", "layers": "0-24", "alphas": "-1,0.5,1,2", "num_random": "0"}


@dataclass(frozen=True)
class Seconds:
    """Of one sweep: on the clock, on the clock after the last score, and of this process's processors, which other work does not change."""

    wall: float
    after_scoring: float
    processor: float


def sweep(plan: Plan, uri: str | None) -> Seconds:
    """Does the sweep once."""
    with tempfile.TemporaryDirectory() as folder:
        begin, begin_processor = time.monotonic(), time.process_time()
        if uri is None:
            result = run(plan, [], lambda pack: None, lambda *state: None)
            scored = time.monotonic()
            write_record(result, Path(folder) / "record")
            return Seconds(time.monotonic() - begin, time.monotonic() - scored, time.process_time() - begin_processor)
        with SweepRun.open(plan.config, tracking_uri=uri) as tracked:
            tracked.announce(plan.config, plan.conditions)

            def progress(done: int, total: int, figures: Mapping[str, float]) -> None:
                tracked.progress(done, total, figures)

            result = run(plan, [], lambda pack: None, progress)
            scored = time.monotonic()
            tracked.log(result, Path(folder) / "record")
        return Seconds(time.monotonic() - begin, time.monotonic() - scored, time.process_time() - begin_processor)


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """The address of an `mlflow server` with SQLite and proxied artifacts."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    store = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts")]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", *store]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=quiet, stderr=quiet, start_new_session=True)
    try:
        while True:
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=1)
                break
            except OSError:
                time.sleep(0.2)
        yield uri
    finally:
        os.killpg(process.pid, 15)
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    sizes = {"max_samples": str(asked.prompts), "sequence_length": str(asked.tokens)}
    plan = make_plan(prepare(make_config("seed", {**CONDITIONS, **sizes})))
    print(f"{len(plan.conditions) - 1} conditions, {plan.n_cells} texts of {asked.tokens} tokens", flush=True)
    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as address, own_retries():
        stores = {"without": None, "SQLite": f"sqlite:///{folder}/own.db", "HTTP": address}
        with SweepRun.open(plan.config, tracking_uri=stores["SQLite"]):
            pass  # makes the database
        found: dict[str, list[Seconds]] = {name: [] for name in stores}
        for _ in range(asked.rounds):
            for name, uri in stores.items():
                took = sweep(plan, uri)
                found[name].append(took)
                print(f"{name:<8} {took.wall:7.1f} s, after scoring {took.after_scoring:6.1f} s, processors {took.processor:7.1f} s", flush=True)
    for name in ("SQLite", "HTTP"):
        for clock in ("wall", "processor"):
            base = median(getattr(took, clock) for took in found["without"])
            added = median(getattr(took, clock) for took in found[name]) - base
            per_child = 1000 * added / (len(plan.conditions) - 1)
            print(f"{name:<8} adds {added:5.1f} s on the {clock} clock: {100 * added / base:.1f}% of {base:.1f} s, {per_child:.0f} ms a child")


if __name__ == "__main__":
    main()

"""What a sweep of many cells takes beside its model: time and memory from the spool to the record, with texts and scores made up at once.

    python bench/large_sweep.py [--cells 10000,100000,1000000] [--prompts 100] [--figure FILE.png]
    python bench/large_sweep.py --compared 10 --cells 10000,100000

Each size in a process of its own. The cells are cut into packs, spooled, scored, written as tables and laid out as a record by the code of every
sweep; only the engine's and the scorer's numbers are made up: texts of 30 words (120 characters), no two of them equal, and 32 scores.
--figure draws the memory that each took over its time.
With --compared, one sweep of each size is logged so many times in a store of its own, and a process that has nothing else to do compares these runs.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from places import write_texts
from tiny_models import save_tiny

from emo_mlflow.commands.compare import compare
from emo_mlflow.report.comparison_points import LINES, SHADES
from emo_mlflow.report.fonts import styled
from emo_mlflow.report.style import new_figure, save
from emo_mlflow.scoring.protocol import Scorers
from emo_mlflow.settings.sweep import make_config
from emo_mlflow.steering.packing import Row
from emo_mlflow.sweeping.plan import Plan, make_plan, prepare
from emo_mlflow.sweeping.run import run
from emo_mlflow.sweeping.spool import Spool
from emo_mlflow.tracking.record import write_record
from emo_mlflow.tracking.sweep_run import SweepRun
from emo_mlflow.types import Completion, FloatArray

WORDS = "the train leaves at noon and every one who waits for it says that they have never been so glad to see rain on hills"
METRICS, PACK = 32, "384"
POINTS = 500  # of a curve, at most
EMOTIONS = ("gratitude", "anger", "apology", "joy", "neutral")


class FastScorer:
    """Numbers from a text's length and letters."""

    name, fingerprint, agreement, providers, costs = "fast", "f" * 16, (), ("none",), {}
    metrics = ("goemotions.gratitude", "goemotions.anger", "goemotions.joy", *(f"goemotions.m{i}" for i in range(METRICS - 3)))

    def score(self, texts: Sequence[str]) -> FloatArray:
        seeds = np.array([hash(text) % 65521 for text in texts], np.float32)
        return np.asarray((seeds[:, None] * np.arange(1, METRICS + 1, dtype=np.float32)) % 1013 / 1013, np.float32)


def fast_engine(plan: Plan) -> Any:
    """The engine's packs, with texts made up."""
    rng, words_known = np.random.default_rng(0), WORDS.split()

    def generate(rows: Sequence[Row]) -> Iterator[list[Completion]]:
        words, likely = rng.integers(0, len(words_known), (len(rows), 30)), rng.normal(3, 0.3, (len(rows), 2))
        yield [
            Completion(row.cell, " ".join([words_known[i] for i in chosen]), 30, 30, nll, 1 + abs(sd), 0.97, None)
            for row, chosen, (nll, sd) in zip(rows, words, likely.tolist(), strict=True)
        ]

    return SimpleNamespace(packs=plan.engine.packs, generate=generate, batch_size=int(PACK))


def plan_of(folder: Path, n_cells: int, prompts: int) -> Plan:
    """A sweep of about so many cells of a tiny model."""
    save_tiny(folder / "model", "gpt2")
    write_texts(folder, EMOTIONS, 2 * prompts)
    per_alpha = 4 * 4 * 50 * prompts
    alphas = ",".join(str(1 + i / 64) for i in range(-(-n_cells // per_alpha)))
    settings = {"model": folder / "model", "dataset": folder / "data.jsonl", "layers": "all", "alphas": alphas, "num_random": 49}
    settings |= {"sequence_length": 30, "max_samples": prompts, "device": "cpu", "batch_size": PACK, "emotions": ",".join(EMOTIONS[:4])}
    config = make_config("smoke", {name: str(value) for name, value in settings.items()})
    plan = make_plan(prepare(config))
    plan = replace(plan, conditions=plan.conditions[: -(-n_cells // len(plan.tokens))])
    scorer: Any = FastScorer()
    plan = replace(plan, inputs=replace(plan.inputs, scorers=Scorers([scorer])))
    plan.__dict__["engine"] = fast_engine(plan)
    return plan


def measure(n_cells: int, prompts: int) -> dict[str, Any]:
    """Seconds and GiB of one sweep: at the peak over what the process had when it began, of what is no page of a file, and from moment to moment."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        plan = plan_of(folder, n_cells, prompts)
        spool = Spool(folder / "run")
        spool.begin({"work": "bench"})
        process, peak, ended = psutil.Process(), [0, 0], threading.Event()
        curve: list[tuple[float, float]] = []
        before = process.memory_info().rss

        def watch() -> None:
            while not ended.wait(0.05):
                now = process.memory_info()
                peak[0], peak[1] = max(peak[0], now.rss), max(peak[1], now.rss - now.shared)
                curve.append((time.monotonic() - start, now.rss / 2**30))

        start = time.monotonic()
        threading.Thread(target=watch, daemon=True).start()
        marks: dict[str, float] = {}

        def progress(done: int, total: int, figures: Mapping[str, float]) -> None:
            marks["written"] = time.monotonic()

        result = run(plan, [], spool.keep, progress)
        tables, peak_tables = time.monotonic(), peak[0]
        write_record(result, folder / "record")
        end = time.monotonic()
        ended.set()
        return {
            "cells": plan.n_cells,
            "conditions": len(plan.conditions),
            "spooled": marks["written"] - start,
            "tables": tables - marks["written"],
            "record": end - tables,
            "start_gib": before / 2**30,
            "peak_of_tables_gib": peak_tables / 2**30,
            "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            "anonymous_gib": peak[1] / 2**30,
            "curve": curve[:: -(-len(curve) // POINTS)],
        }


def logged(n_cells: int, prompts: int, times: int, folder: Path) -> list[str]:
    """One sweep as several runs of a store in the folder."""
    plan = plan_of(folder, n_cells, prompts)
    result = run(plan, [], lambda pack: None, lambda *state: None, folder / "tables")
    ids = []
    for _ in range(times):
        with chdir(folder), SweepRun.open(plan.config, tracking_uri=f"sqlite:///{folder}/store.db") as tracked:
            tracked.log(replace(result, config=replace(plan.config, child_runs="none")))
            ids.append(tracked.run_id)
    return ids


def comparison(runs: str, uri: str) -> dict[str, float]:
    """Seconds and GiB of comparing runs."""
    compare(runs.split(",")[:1], tracking_uri=uri, n_bootstrap=2)  # imports, and the store's first connection
    start, before = time.monotonic(), psutil.Process().memory_info().rss
    compare(runs.split(","), tracking_uri=uri)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"runs": runs.count(",") + 1, "seconds": time.monotonic() - start, "start_gib": before / 2**30, "peak_gib": peak / 2**20}


def memory_curves(sizes: Sequence[Mapping[str, Any]]) -> Figure:
    """Memory over the share of the time, a line per size, with the ends of the spool and of the tables."""
    figure = new_figure(6.8, 3.4)
    axes = figure.subplots()
    for found, colour, line in zip(sizes, SHADES, cycle(LINES)):
        seconds, gib = np.array(found["curve"]).T
        total = found["spooled"] + found["tables"] + found["record"]
        axes.plot(seconds / total, gib, color=colour, ls=line, lw=1.2, label=f"{found['cells']:,} cells, {total:,.0f} s")
        ends = np.cumsum([found["spooled"], found["tables"]])
        axes.plot(ends / total, np.interp(ends, seconds, gib), marker="|", ms=10, ls="none", color=colour)
    axes.set_xlim(0, 1)
    axes.set_ylim(0)
    axes.set_xlabel("share of the time; strokes: the last pack is written, the tables are made")
    axes.set_ylabel("memory of the whole process (GiB)")
    figure.legend(loc="outside upper left", ncols=len(sizes))
    return figure


def own_process(*words: str) -> dict[str, Any]:
    """What this program measures in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), *words]
    found: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])
    return found


def main() -> None:
    """Prints a line per size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", default="10000,100000,1000000")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--compared", type=int)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--runs", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.runs:
        print(json.dumps(comparison(*asked.runs)))
        return
    if asked.one:
        print(json.dumps(measure(asked.one, asked.prompts)))
        return
    sizes = []
    for cells in asked.cells.split(","):
        if asked.compared:
            with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
                ids = logged(int(cells), asked.prompts, asked.compared, Path(name))
                print(f"{cells} cells each", own_process("--runs", ",".join(ids), f"sqlite:///{name}/store.db"), flush=True)
            continue
        found = own_process("--one", cells, "--prompts", str(asked.prompts))
        per_cell = (found["peak_gib"] - found["start_gib"]) * 2**30 / found["cells"]
        print("  ".join(f"{name} {value:,.2f}" for name, value in found.items() if name != "curve"), f" bytes_a_cell {per_cell:,.0f}", flush=True)
        sizes.append(found)
        if asked.figure:
            with styled("en"):
                save(memory_curves(sizes), asked.figure)


if __name__ == "__main__":
    main()

"""How fast the engine is: beside TransformerLens, steering-vectors and Hugging Face `generate`, and beside the machine's own limit.

    python bench/engine.py                                   # GPT-Neo-125M's shape, 8 prompts x 36 conditions x 30 tokens, with the peers
    python bench/engine.py --peers none --scopes window      # ours alone
    python bench/engine.py --work study --fraction 0.02 --device cuda --dtype bfloat16       # 413,100 cells of GPT-2 small's shape
    python bench/engine.py --independence                    # real weights: texts of a condition alone and among hundreds
    python bench/engine.py --quick                           # a tiny model: does it run?

Peers take turns with ours, one condition (every prompt) at a time; they are installed into an environment of their own, in front of
this one, so that all use one torch. Figures are medians over the repetitions. bench/README.md has the last report and says what is assumed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import platformdirs
import torch
import transformers
from engine_work import NEO, QUICK, STUDY, Work

from emo_mlflow import estimate, generation
from emo_mlflow.decoding import Decoding
from emo_mlflow.layers import BlockStack
from emo_mlflow.models import fuse_activations
from emo_mlflow.packing import Row
from emo_mlflow.steering import Patch
from emo_mlflow.types import Cell, Completion, Scope

WORKS = {"neo": NEO, "quick": QUICK, "study": STUDY}
WINDOW = 3
PEERS = ("transformer_lens", "steering-vectors", "transformers hooks", "transformers hooks, batch of 8")
UNCACHED = "transformer_lens uncached"  # the only way to a window with its hooks
SHARED = ("torch", "transformers", "tokenizers", "huggingface_hub", "numpy", "pandas", "pyarrow", "safetensors", "accelerate")


@dataclass
class Speed:
    """What repetitions of one engine at one scope gave."""

    tokens_per_second: list[float] = field(default_factory=list)
    same_texts: list[bool] = field(default_factory=list)
    error: str | None = None

    @property
    def median(self) -> float:
        """Tokens per second; NaN if nothing was measured."""
        return statistics.median(self.tokens_per_second) if self.tokens_per_second else float("nan")


class Ours:
    """The engine under test, on one model."""

    def __init__(self, work: Work, device: str, dtype: str, fraction: float) -> None:
        self.work = work
        model = work.model()
        self.directions = work.directions(work.residual_norms(model))
        fuse_activations(model)  # as models.load does
        self.stack = BlockStack(model.to(device=torch.device(device), dtype=getattr(torch, dtype)))
        self.n_conditions = max(1, round(work.n_conditions * fraction))
        self.texts: dict[Cell, str] = {}

    def rows(self, scope: Scope) -> list[Row]:
        """The cells, and a baseline per prompt."""
        work, rows = self.work, []
        window = WINDOW if scope == "window" else None
        prompts = list(enumerate(work.prompts()))
        rows += [Row(Cell("baseline", str(i), 0), prompt, None) for i, prompt in prompts]
        alphas = np.ones(work.n_steps, np.float32)
        for condition in range(self.n_conditions):
            direction, layer = divmod(condition, work.n_layers)
            patch = Patch(layer, scope, window, self.directions[direction, layer], None, alphas)
            rows += [Row(Cell(f"{direction}/{layer}", str(i), 0), prompt, patch) for i, prompt in prompts]
        return rows

    def run(self, scope: Scope) -> tuple[float, float, list[Completion]]:
        """Seconds in all, seconds of them for likelihoods, completions."""
        work = self.work
        decoding = Decoding(work.n_steps, work.n_steps, 0.0, (0,))
        engine = generation.Engine(self.stack, decoding, lambda batch: [" ".join(map(str, ids)) for ids in batch])
        rows = self.rows(scope)
        with clock(generation, "mean_nll") as spent:
            start = time.perf_counter()
            done = [completion for pack in engine.generate(rows) for completion in pack]
            seconds = time.perf_counter() - start
        return seconds, sum(spent), done


@contextmanager
def clock(owner: object, name: str) -> Iterator[list[float]]:
    """Collects the seconds of every call of a function while open."""
    real, spent = getattr(owner, name), list[float]()

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return real(*args, **kwargs)
        finally:
            spent.append(time.perf_counter() - start)

    with mock.patch.object(owner, name, timed):
        yield spent


class PeerProcess:
    """The other libraries, in a process of their environment; waits without work while ours is measured."""

    def __init__(self, python: Path, work: str) -> None:
        command = [str(python), str(Path(__file__).with_name("engine_peers.py")), work]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.versions = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return dict(json.loads(line)) if line else {"error": "the peers' process has ended"}

    def run(self, name: str, direction: int, layer: int) -> dict[str, Any]:
        """seconds and texts of one condition, or error."""
        assert self.process.stdin is not None
        print(json.dumps({"name": name, "direction": direction, "layer": layer, "window": WINDOW}), file=self.process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)


def peers_python(folder: Path) -> Path:
    """The interpreter of the peers' environment, made if it is not there: this environment's packages, and the peers in front."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    done = folder / "installed"
    if not done.exists():
        print(f"installing the peers into {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        purelib = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True)
        (Path(purelib.strip()) / "parent.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        constraints = folder / "constraints.txt"
        from importlib.metadata import version

        constraints.write_text("".join(f"{name}=={version(name)}\n" for name in SHARED), encoding="utf-8")
        command = [python, "-m", "pip", "install", "--quiet", "-c", constraints, "transformer_lens", "steering-vectors"]
        subprocess.run([str(part) for part in command], check=True)
        done.touch()
    return python


def gemm_limit(ours: Ours, rows: int) -> float:
    """The best float rate of any product of the model at this batch, and of a large square one, in operations per second."""
    d, device, dtype = ours.work.d_model, ours.stack.device, ours.stack.dtype
    shapes = [(rows, d, d), (rows, d, 4 * d), (rows, 4 * d, d), (2048, 2048, 2048)]
    return max(estimate.gemm_rate(device, dtype, *shape) for shape in shapes)


def flops_per_token(ours: Ours, scope: Scope) -> float:
    """Matrix products of a generated token: every block once (above a window's layer W + 1 times, once it has moved), the logits once."""
    stack, work = ours.stack, ours.work
    block = sum(p.numel() for p in stack.blocks.parameters()) / stack.n_layers
    head = stack.model.get_output_embeddings().weight.numel()
    again = WINDOW * max(0, work.n_steps - 1 - WINDOW) / work.n_steps if scope == "window" else 0.0
    above = (stack.n_layers + 1) / 2  # blocks above the edited boundary, on average over the layers
    return 2.0 * (block * (stack.n_layers + again * above) + head)


def measure(ours: Ours, peers: PeerProcess | None, scope: Scope, repetitions: int) -> dict[str, Speed]:
    """Ours and the peers in turn; the first turn is not counted."""
    work = ours.work
    names = [*PEERS, *([UNCACHED] if scope == "window" else [])] if peers else []
    speeds = {name: Speed() for name in ("ours", "ours with likelihoods", *names)}
    for repetition in range(repetitions + 1):
        seconds, likelihoods, done = ours.run(scope)
        texts = {completion.cell: completion.completion for completion in done}
        tokens = sum(completion.n_tokens for completion in done)
        if repetition:
            speeds["ours"].tokens_per_second.append(tokens / (seconds - likelihoods))
            speeds["ours with likelihoods"].tokens_per_second.append(tokens / seconds)
        direction, layer = repetition % work.n_directions, (5 + 3 * repetition) % work.n_layers
        for name in names:
            assert peers is not None
            answer = peers.run(name, direction, layer)
            if "error" in answer:
                speeds[name].error = answer["error"]
                continue
            cells = [Cell(f"{direction}/{layer}", str(i), 0) for i in range(work.n_prompts)]
            speeds[name].same_texts += [
                " ".join(map(str, text)) == texts[cell] for text, cell in zip(answer["texts"], cells, strict=True)
            ]
            if repetition:
                speeds[name].tokens_per_second.append(sum(map(len, answer["texts"])) / answer["seconds"])
        print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    ours.texts = texts
    return speeds


def report(ours: Ours, scope: Scope, speeds: dict[str, Speed], rate: float) -> None:
    """Medians, ratios to ours, and the share of the limit."""
    limit = rate / flops_per_token(ours, scope)
    print(f"\nscope {scope}" + (f", W = {WINDOW}" if scope == "window" else ""))
    print(f"{'engine':34}{'tokens/s':>10}{'range':>17}{'ours/it':>9}  texts equal to ours")
    for name, speed in speeds.items():
        if speed.error or not speed.tokens_per_second:
            print(f"{name:34}{'failed':>10}  {speed.error}")
            continue
        low, high = min(speed.tokens_per_second), max(speed.tokens_per_second)
        equal = f"{sum(speed.same_texts)} of {len(speed.same_texts)}" if speed.same_texts else ""
        ratio = speeds["ours"].median / speed.median
        print(f"{name:34}{speed.median:>10.1f}{f'{low:.1f} to {high:.1f}':>17}{ratio:>9.2f}  {equal}")
    print(f"{'GEMM limit':34}{limit:>10.1f}{'':17}{speeds['ours'].median / limit:>9.2f}  ({rate / 1e9:.0f} GFLOP/s)")
    print(f"distinct texts: {len(set(ours.texts.values()))} of {len(ours.texts)}")


def profile(ours: Ours, scope: Scope) -> None:
    """Where the time of one run goes, by operator."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if ours.stack.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as found:
        ours.run(scope)
    on_device = ours.stack.device.type == "cuda"
    spent = {e.key: (e.self_device_time_total if on_device else e.self_cpu_time_total, e.count) for e in found.key_averages()}
    total = sum(seconds for seconds, _ in spent.values())
    print(f"\nprofile, scope {scope}: self time by operator, {total / 1e6:.1f} s in all with the profiler on")
    for name, (microseconds, count) in sorted(spent.items(), key=lambda item: -item[1][0])[:12]:
        print(f"{microseconds / total:>7.1%}  {count:>8,} calls  {name}")


def independence(n_cells: int) -> None:
    """Real weights: every condition alone (its prompts together) against all packed, greedy, float32."""
    from emo_mlflow.models import load, resolve
    from emo_mlflow.stages import text_decoder

    work = Work("", 30, 576, 49152, 8, -(-n_cells // 240), 30)
    loaded = load(resolve("smollm2-135m"), torch.device("cpu"), torch.float32)
    ours = object.__new__(Ours)
    ours.work, ours.stack, ours.n_conditions = work, BlockStack(loaded.model), work.n_conditions
    ours.directions = work.directions(work.residual_norms(loaded.model))
    engine = generation.Engine(ours.stack, Decoding(30, 30, 0.0, loaded.eos_ids), text_decoder(loaded))
    for scope in ("generated", "window"):
        rows = ours.rows(scope)
        packed = {c.cell: c.completion for pack in engine.generate(rows) for c in pack}
        alone: dict[Cell, str] = {}
        for condition in dict.fromkeys(row.cell.condition_id for row in rows):
            own = [row for row in rows if row.cell.condition_id == condition]
            alone |= {c.cell: c.completion for pack in engine.generate(own) for c in pack}
        differing = sum(packed[cell] != text for cell, text in alone.items())
        print(f"scope {scope}: {differing} of {len(alone)} cells ({differing / len(alone):.3%}) differ between packed and alone")


def peak_memory(device: torch.device) -> str:
    """GiB at the peak: of the device, or of this process."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB on the device"
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform != 'darwin' else 2**30):.2f} GiB"


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", choices=WORKS, default="neo")
    parser.add_argument("--quick", action="store_true", help="a tiny model, one repetition")
    parser.add_argument("--scopes", default="generated,window")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--peers", default=None, help="folder of the peers' environment, made if needed; none: ours alone")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--fraction", type=float, default=1.0, help="of the conditions; the whole is extrapolated")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--independence", type=int, nargs="?", const=1200, metavar="CELLS")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the report."""
    given = options(argv)
    if given.independence:
        independence(given.independence)
        return 0
    name, repetitions = ("quick", 1) if given.quick else (given.work, given.repetitions)
    work = WORKS[name]
    print(f"{time.strftime('%Y-%m-%d')}, {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
          f"transformers {transformers.__version__}; {work.family} {work.n_layers} x {work.d_model}, {given.device} {given.dtype}")
    ours = Ours(work, given.device, given.dtype, given.fraction)
    n_cells = ours.n_conditions * work.n_prompts
    print(f"{work.n_prompts} prompts x {ours.n_conditions} conditions x {work.n_steps} tokens, {n_cells:,} cells and the baselines")
    peers = None
    if given.peers != "none" and not (given.quick and given.peers is None) and work is not STUDY:
        folder = Path(given.peers or platformdirs.user_cache_path("emo_mlflow") / "bench-peers")
        peers = PeerProcess(peers_python(folder), name)
        print("peers:", ", ".join(f"{key} {value}" for key, value in peers.versions.items()))
    try:
        for scope in given.scopes.split(","):
            rate = gemm_limit(ours, min(n_cells, generation.CPU_BATCH))
            speeds = measure(ours, peers, scope, repetitions)
            report(ours, scope, speeds, rate)
            if ours.n_conditions < work.n_conditions:
                whole = work.n_cells * work.n_steps / speeds["ours with likelihoods"].median
                print(f"all {work.n_cells:,} cells at this rate: {whole / 60:.1f} min with likelihoods")
            if given.profile:
                profile(ours, scope)
    finally:
        if peers:
            peers.close()
    print(f"\npeak memory {peak_memory(ours.stack.device)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

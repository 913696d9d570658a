"""How fast the engine is: beside TransformerLens, steering-vectors and Hugging Face `generate`, and beside the machine's own limit.

    python bench/engine.py                                   # GPT-Neo-125M's shape, 8 prompts x 36 conditions x 30 tokens, with the peers
    python bench/engine.py --peers none --scopes window      # ours alone
    python bench/engine.py --work study --fraction 0.02 --device cuda --dtype bfloat16       # 413,100 cells of GPT-2 small's shape
    python bench/engine.py --bands 5                         # single edits and bands of three by turns
    python bench/engine.py --prefill                         # real weights: reading texts, as directions are fitted, beside the limit
    python bench/engine.py --independence                    # real weights: texts of a condition alone and among hundreds
    python bench/engine.py --quick                           # a tiny model: does it run?

Peers take turns with ours, one condition (every prompt) at a time; each is installed into an environment of its own, with the torch and
transformers that it wants. Figures are medians over the repetitions. bench/README.md has the last report and says what is assumed.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import platformdirs
import torch
import transformers
from engine_environment import ENVIRONMENT_OF, PeerProcess, peer_python
from engine_work import CLOCKS, NEO, QUICK, STUDY, Work
from safetensors.torch import save_model

from emo_mlflow.common.machine import gemm_rate, peak_memory
from emo_mlflow.directions.activations import text_means
from emo_mlflow.models.blocks import BlockStack
from emo_mlflow.models.loading import LoadedModel, fuse_activations, load
from emo_mlflow.models.names import resolve
from emo_mlflow.models.tokens import encode_fit_texts
from emo_mlflow.prompts.selection import load_prompts
from emo_mlflow.settings.templates import Form
from emo_mlflow.steering import decoding
from emo_mlflow.steering import engine as generation
from emo_mlflow.steering.edits import Patch
from emo_mlflow.steering.packing import Layout, Row
from emo_mlflow.steering.sampling import Decoding
from emo_mlflow.types import Cell, Scope

WORKS = {"neo": NEO, "quick": QUICK, "study": STUDY}
WINDOW = 3
BAND = 3
NAME = 46  # letters of an engine's name in a report
UNCACHED = "transformer_lens uncached"  # the only way to a window with its hooks


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

    def take(self, answer: Mapping[str, Any], ours: Run, condition: str) -> None:
        """Takes in what a peer answered about a condition's prompts, and compares its texts with ours."""
        if "error" in answer:
            self.error = answer["error"]
            return
        texts = as_numbers(answer["texts"])
        self.same_texts += [text == ours.texts[Cell(condition, str(i), 0)] for i, text in enumerate(texts)]
        self.tokens_per_second.append(sum(map(len, answer["texts"])) / answer["seconds"])


@dataclass(frozen=True)
class Run:
    """What one sweep gave and took; operations are those of products with weights."""

    texts: dict[Cell, str]
    n_tokens: int
    seconds: float
    flops: float

    @property
    def speed(self) -> float:
        """Tokens per second."""
        return self.n_tokens / self.seconds


class Ours:
    """The engine under test, on one model."""

    def __init__(self, work: Work, device: str, dtype: str, fraction: float, clock: str) -> None:
        self.work = work
        self.clock = CLOCKS[clock]
        model = work.model()
        self.directions = work.directions(work.residual_norms(model))
        fuse_activations(model)  # as models.load does
        self.stack = BlockStack(model.to(device=torch.device(device), dtype=getattr(torch, dtype)))
        self.n_conditions = max(1, round(work.n_conditions * fraction))

    def rows(self, scope: Scope, n_conditions: int, band: int = 1) -> list[Row]:
        """The cells of so many conditions, and a baseline per prompt; each edits so many layers from its own on, where the model has them."""
        work, rows = self.work, []
        window = WINDOW if scope == "window" else None
        prompts = list(enumerate(work.prompts()))
        rows += [Row(Cell("baseline", str(i), 0), prompt, None) for i, prompt in prompts]
        alphas = np.ones(work.n_steps, np.float32)
        for condition in range(n_conditions):
            direction, layer = divmod(condition, work.n_layers)
            layers = range(layer, min(layer + band, work.n_layers))
            first, *then = (Patch(each, scope, window, self.directions[direction, each] / len(layers), None, alphas) for each in layers)
            patch = replace(first, then=tuple(then))
            rows += [Row(Cell(f"{direction}/{layer}", str(i), 0), prompt, patch) for i, prompt in prompts]
        return rows

    def run(self, scope: Scope, n_conditions: int | None = None, likelihoods: bool = True, band: int = 1) -> Run:
        """One sweep, of all conditions unless said otherwise, with or without each text's NLL under the unpatched model."""
        work, stack = self.work, self.stack
        engine = generation.Engine(self.stack, Decoding(work.n_steps, work.n_steps, 0.0, (0,)), as_numbers)
        rows = self.rows(scope, n_conditions or self.n_conditions, band)
        with nullcontext() if likelihoods else mock.patch.object(decoding, "token_nll", no_likelihoods):
            start, flops = self.clock(), stack.flops
            done = [completion for pack in engine.generate(rows) for completion in pack]
            seconds = self.clock() - start
        texts = {completion.cell: completion.completion for completion in done}
        return Run(texts, sum(completion.n_tokens for completion in done), seconds, stack.flops - flops)


def no_likelihoods(stack: BlockStack, layout: Layout, tokens: torch.Tensor, *args: Any) -> torch.Tensor:
    """In place of fluency.token_nll: no peer computes it."""
    return torch.zeros(tokens.shape)


def as_numbers(batch: list[list[int]]) -> list[str]:
    """Token ids written out, in place of a tokenizer's text."""
    return [" ".join(map(str, ids)) for ids in batch]


def gemm_limit(ours: Ours, rows: int) -> float:
    """The best rate of any of the blocks' products at this batch, and of a large square one, in operations per second."""
    d, device, dtype = ours.work.d_model, ours.stack.device, ours.stack.dtype
    shapes = [(rows, d, d), (rows, d, 4 * d), (rows, 4 * d, d), (2048, 2048, 2048)]
    return max(gemm_rate(device, dtype, *shape, ours.clock) for shape in shapes)


def measure(ours: Ours, peers: Mapping[str, PeerProcess], scope: Scope, repetitions: int) -> tuple[dict[str, Speed], dict[str, Run]]:
    """Ours and the peers in turn, and our last runs; each does one condition before that, which is not counted."""
    work = ours.work
    names = [name for name, package in ENVIRONMENT_OF.items() if package in peers and (name != UNCACHED or scope == "window")]
    speeds = {name: Speed() for name in ("ours", "ours with likelihoods", *names)}
    ours.run(scope, 1)
    for name in names:
        peers[ENVIRONMENT_OF[name]].run(name=name, direction=0, layer=0, window=WINDOW)
    for repetition in range(repetitions):
        runs = {"ours": ours.run(scope, likelihoods=False), "ours with likelihoods": ours.run(scope)}
        for name, run in runs.items():
            speeds[name].tokens_per_second.append(run.speed)
        direction, layer = repetition % work.n_directions, (5 + 3 * repetition) % work.n_layers
        for name in names:
            answer = peers[ENVIRONMENT_OF[name]].run(name=name, direction=direction, layer=layer, window=WINDOW)
            speeds[name].take(answer, runs["ours"], f"{direction}/{layer}")
        print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return speeds, runs


def print_speeds(speeds: Mapping[str, Speed]) -> None:
    """A line per engine: its median, and how many times as fast ours is."""
    print(f"{'engine':{NAME}}{'tokens/s':>10}{'range':>19}{'ours/it':>9}  texts equal to ours")
    for name, speed in speeds.items():
        if speed.error or not speed.tokens_per_second:
            print(f"{name:{NAME}}{'failed':>10}  {speed.error}")
            continue
        low, high = min(speed.tokens_per_second), max(speed.tokens_per_second)
        equal = f"{sum(speed.same_texts)} of {len(speed.same_texts)}" if speed.same_texts else ""
        ratio = speeds["ours"].median / speed.median
        print(f"{name:{NAME}}{speed.median:>10.1f}{f'{low:.1f} to {high:.1f}':>19}{ratio:>9.2f}  {equal}")


def report(scope: Scope, speeds: dict[str, Speed], runs: dict[str, Run], rate: float) -> None:
    """Medians, ratios to ours, and the limits: what our products would take at the best rate, and nothing else anything."""
    limits = {name.replace("ours", "limit"): run.n_tokens * rate / run.flops for name, run in runs.items()}
    print(f"\nscope {scope}" + (f", W = {WINDOW}" if scope == "window" else ""))
    print_speeds(speeds)
    for name, limit in limits.items():
        reached = speeds[name.replace("limit", "ours")].median / limit
        print(f"{name:{NAME}}{limit:>10.1f}{'':19}{reached:>9.2f}  at {rate / 1e9:.0f} GFLOP/s")
    texts = runs["ours"].texts
    print(f"distinct texts: {len(set(texts.values()))} of {len(texts)}")


def profile(ours: Ours, scope: Scope) -> None:
    """Where the time of one run goes, by operator; on a CPU with one thread, because the profiler sees no other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if ours.stack.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as found:
        ours.run(scope)
    torch.set_num_threads(threads)
    on_device = ours.stack.device.type == "cuda"
    spent = {e.key: (e.self_device_time_total if on_device else e.self_cpu_time_total, e.count) for e in found.key_averages()}
    total = sum(seconds for seconds, _ in spent.values())
    print(f"\nprofile, scope {scope}{'' if on_device else ', one thread'}: self time by operator, {total / 1e6:.1f} s in all with the profiler on")
    for name, (microseconds, count) in sorted(spent.items(), key=lambda item: -item[1][0])[:12]:
        print(f"{microseconds / total:>7.1%}  {count:>8,} calls  {name}")


def bands(ours: Ours, scope: Scope, repetitions: int) -> None:
    """Single edits and bands of `BAND` layers by turns: medians, and what a band costs beside a single edit."""
    speeds = {1: Speed(), BAND: Speed()}
    for band in speeds:
        ours.run(scope, 1, likelihoods=False, band=band)
    for _ in range(repetitions):
        for band, speed in speeds.items():
            speed.tokens_per_second.append(ours.run(scope, likelihoods=False, band=band).speed)
    print(f"\nscope {scope}" + (f", W = {WINDOW}" if scope == "window" else ""))
    for band, speed in speeds.items():
        low, high = min(speed.tokens_per_second), max(speed.tokens_per_second)
        print(f"layers edited: {band:<20}{speed.median:>10.1f} tokens/s{f'{low:.1f} to {high:.1f}':>19}")
    print(f"a band of {BAND} takes {speeds[1].median / speeds[BAND].median:.2f} times as long as a single edit")


def embedded_model(n_conditions: int) -> Ours:
    """The engine on real weights, those of the embedded SmolLM2, with random directions for so many conditions, by layer."""
    return on_model(load(resolve("smollm2-135m"), torch.device("cpu"), torch.float32), n_conditions)


def on_model(loaded: LoadedModel, n_conditions: int) -> Ours:
    """The engine on a loaded model."""
    work = Work("", loaded.n_layers, loaded.d_model, 49152, 8, -(-n_conditions // loaded.n_layers), 30)
    ours = object.__new__(Ours)
    ours.work, ours.stack, ours.n_conditions, ours.clock = work, BlockStack(loaded.model), n_conditions, time.process_time
    ours.directions = work.directions(work.residual_norms(loaded.model))
    return ours


def prefill(repetitions: int) -> None:
    """Real weights: the texts that a sweep fits its directions on, read once; the share of the products' limit, one thread's processor time."""
    torch.set_num_threads(1)
    loaded = load(resolve("smollm2-135m"), torch.device("cpu"), torch.float32)
    ours = on_model(loaded, 1)
    texts = encode_fit_texts(loaded, load_prompts(max_samples=1).fit, Form())
    print(f"{len(texts)} texts of {sum(map(len, texts.tokens)):,} tokens in all")
    for _ in range(repetitions):
        rate, flops, start = gemm_limit(ours, 512), ours.stack.flops, ours.clock()
        text_means(ours.stack, texts, "resid_post")
        seconds = ours.clock() - start
        share = (ours.stack.flops - flops) / seconds / rate
        print(f"{seconds:.1f} s, {(ours.stack.flops - flops) / seconds / 1e9:.0f} of {rate / 1e9:.0f} GFLOP/s: {share:.2f} of the limit", flush=True)


def independence(n_cells: int) -> None:
    """Real weights: every condition alone (its prompts together) against all packed, greedy, float32."""
    ours = embedded_model(-(-n_cells // 8))
    engine = generation.Engine(ours.stack, Decoding(30, 30, 0.0, (0,)), as_numbers)
    for scope in ("generated", "window"):
        rows = ours.rows(scope, ours.n_conditions)
        packed = {c.cell: c.completion for pack in engine.generate(rows) for c in pack}
        alone: dict[Cell, str] = {}
        for condition in dict.fromkeys(row.cell.condition_id for row in rows):
            own = [row for row in rows if row.cell.condition_id == condition]
            alone |= {c.cell: c.completion for pack in engine.generate(own) for c in pack}
        differing = sum(packed[cell] != text for cell, text in alone.items())
        print(f"scope {scope}: {differing} of {len(alone)} cells ({differing / len(alone):.3%}) differ between packed and alone")


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", choices=WORKS, default="neo")
    parser.add_argument("--quick", action="store_true", help="a tiny model, one repetition")
    parser.add_argument("--scopes", default="generated,window")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--peers", default=None, help="folder of the peers' environments, made if needed; none: ours alone")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--fraction", type=float, default=1.0, help="of the conditions; the whole is extrapolated")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: processor seconds, for a machine with other work; one thread")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--bands", type=int, metavar="REPETITIONS", help="single edits and bands of three layers by turns, and nothing else")
    parser.add_argument("--prefill", action="store_true", help="reading texts alone")
    parser.add_argument("--independence", type=int, nargs="?", const=1200, metavar="CELLS")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the report."""
    given = options(argv)
    if given.independence:
        independence(given.independence)
        return 0
    if given.prefill:
        prefill(given.repetitions)
        return 0
    name, repetitions = ("quick", 1) if given.quick else (given.work, given.repetitions)
    work = WORKS[name]
    print(f"{time.strftime('%Y-%m-%d')}, {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
          f"transformers {transformers.__version__}; {work.family} {work.n_layers} x {work.d_model}, {given.device} {given.dtype}, "
          f"{given.clock} clock")
    ours = Ours(work, given.device, given.dtype, given.fraction, given.clock)
    n_cells = ours.n_conditions * work.n_prompts
    print(f"{work.n_prompts} prompts x {ours.n_conditions} conditions x {work.n_steps} tokens, {n_cells:,} cells and the baselines")
    if given.bands:
        for scope in given.scopes.split(","):
            bands(ours, scope, given.bands)
        return 0
    with ExitStack() as closing:
        peers: dict[str, PeerProcess] = {}
        if given.peers != "none" and not (given.quick and given.peers is None) and work is not STUDY:
            folder = Path(given.peers or platformdirs.user_cache_path("emo_mlflow") / "bench-peers")
            weights = Path(closing.enter_context(tempfile.TemporaryDirectory())) / "weights.safetensors"
            save_model(work.model(), str(weights))
            for package in dict.fromkeys(ENVIRONMENT_OF.values()):
                peers[package] = PeerProcess(peer_python(folder, package), "engine_peers.py", package, name, given.clock, str(weights))
                closing.callback(peers[package].close)
                print("peer:", ", ".join(f"{key} {value}" for key, value in peers[package].versions.items()))
        for scope in given.scopes.split(","):
            most = generation.CPU_BATCH if ours.stack.device.type == "cpu" else generation.GPU_BATCH
            rate = gemm_limit(ours, min(n_cells, most))
            speeds, runs = measure(ours, peers, scope, repetitions)
            report(scope, speeds, runs, rate)
            if ours.n_conditions < work.n_conditions:
                whole = work.n_cells * work.n_steps / speeds["ours with likelihoods"].median
                print(f"all {work.n_cells:,} cells at this rate: {whole / 60:.1f} min with likelihoods")
            if given.profile:
                profile(ours, scope)
    print(f"\npeak memory {peak_memory(ours.stack.device) / 2**30:.2f} GiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A sweep: settings to conditions, conditions to completions, completions to scores and effects.

Knows nothing of MLflow or of the command line. Three steps, each the next one's argument: `prepare` reads and checks everything that is cheap,
`make_plan` loads the model and lays out the work, `run` does it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow.compute as pc
import torch

from emo_mlflow.common.machine import best_gemm_rate, peak_memory
from emo_mlflow.models.identity import identity
from emo_mlflow.prompts.selection import fit_hash
from emo_mlflow.sweeping.plan import Plan
from emo_mlflow.sweeping.results import SweepResult
from emo_mlflow.sweeping.stages import (
    Generation,
    completion_batch,
    completions_in,
    probe_logits,
)
from emo_mlflow.sweeping.tables import Work, assemble
from emo_mlflow.types import Completion

Progress = Callable[[int, int, Mapping[str, float]], None]


def run(
    plan: Plan,
    done: Iterable[Sequence[Completion]],
    keep: Callable[[Sequence[Completion]], None],
    on_progress: Progress,
    folder: Path | None = None,
) -> SweepResult:
    """Generates what is not done, scores everything, and computes the effects.

    Args:
        done: completions of an earlier, interrupted run of the same sweep, in batches.
        keep: called with every pack's completions as they come, before anything else is done with them.
        on_progress: called with cells done, cells in all, and figures of speed.
        folder: where the tables of cells are written; None for a folder that is there as long as the result.
    """
    probe = next(iter(plan.tokens.values()))
    before = probe_logits(plan.loaded, probe)
    work = Work(plan, folder)
    for batch in done:
        work.add(completion_batch(batch))
    n_done = n = len(work)
    on_progress(n, plan.n_cells, {})
    if plan.stack.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(plan.stack.device)
    start, tokens, flops = time.monotonic(), 0, plan.stack.flops
    generate = Generation(plan, plan.engine)
    for cells in plan.packs(work.is_done):
        pack = generate(cells)
        keep(completions_in(pack))
        work.add(pack)
        n += len(pack)
        tokens += pc.sum(pack["n_tokens"]).as_py()
        seconds = time.monotonic() - start
        speed = {
            "tokens_per_second": tokens / seconds,
            "cells_per_second": (n - n_done) / seconds,
        }
        on_progress(n, plan.n_cells, speed)
    generated = time.monotonic()
    stack, flops_done = plan.stack, plan.stack.flops - flops
    rate = best_gemm_rate(stack.device, stack.dtype)
    measured = time.monotonic()
    work.score()
    metrics = {
        "seconds.generation": generated - start,
        "seconds.scoring": time.monotonic() - measured,
        "tokens_per_second": tokens / max(generated - start, 1e-9),
        "cells_per_second": (n - n_done) / max(generated - start, 1e-9),
        "gemm_utilisation": flops_done / (rate * max(generated - start, 1e-9)),
        "peak_memory_gib": peak_memory(stack.device) / 2**30,
        **plan.inputs.scorers.costs,
        "hygiene.max_logit_change": float((probe_logits(plan.loaded, probe) - before).abs().max()),
    }
    return finish(work, metrics, str(plan.stack.device))


def finish(work: Work, metrics: Mapping[str, float], device: str) -> SweepResult:
    """The result of a sweep that is scored, whatever ran its stages; `metrics` are those of the engine that did."""
    plan = work.plan
    counts = {
        "distinct_texts": float(work.n_distinct),
        "failed_cells": float(work.n_failed),
    }
    return assemble(
        plan.config,
        _facts(plan, device),
        plan.inputs.prompts,
        plan.swept,
        work,
        {**metrics, **counts},
    )


def _facts(plan: Plan, device: str) -> dict[str, object]:
    loaded, prompts = plan.loaded, plan.inputs.prompts
    return {
        **identity(loaded),
        "model": {"name": loaded.spec.name, "source": loaded.spec.source, "revision": loaded.spec.revision, **loaded.quantised},
        "model_fingerprint": loaded.fingerprint,
        "n_layers": loaded.n_layers,
        "d_model": loaded.d_model,
        "device": device,
        "n_cells": plan.n_cells,
        "scorer_fingerprints": dict(plan.inputs.scorers.fingerprints),
        "scorer_providers": list(plan.inputs.scorers.providers),
        "agreement": plan.inputs.scorers.agreement,
        "reference": prompts.reference,
        "prompt_source": prompts.source,
        "prompt_split": prompts.split,
        "n_duplicates_dropped": prompts.n_duplicates,
        "fit_hash": fit_hash(prompts.fit),
        **plan.swept.facts(),
    }

"""A sweep on many machines: the stages of sweep/stages.py as actors of Ray Data, streamed from one to the next and back to this process.

A row of the first data set is a pack as the engine of one process cuts it, so that a pack is what an actor does at a time, what is repeated
if the actor dies, and what a text's numbers are computed beside, here as there. Ray is imported where it is used: nobody else needs it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from emo_mlflow.cluster.connection import Pools, connected, make_pools
from emo_mlflow.errors import UserError
from emo_mlflow.models.blocks import BlockStack
from emo_mlflow.models.loading import LoadedModel, load
from emo_mlflow.models.names import ModelSpec
from emo_mlflow.scoring.loading import load_scorers
from emo_mlflow.scoring.rubric import is_judge
from emo_mlflow.sweeping.grid import Grid
from emo_mlflow.sweeping.plan import Plan
from emo_mlflow.sweeping.results import SweepResult
from emo_mlflow.sweeping.run import Progress, finish
from emo_mlflow.sweeping.stages import (
    CELL,
    Generation,
    Scoring,
    completion_batch,
    completions_in,
    make_engine,
    probe_logits,
)
from emo_mlflow.sweeping.tables import Work
from emo_mlflow.types import Completion

LOGIT_CHANGE, SECONDS = "logit_change", "scoring_seconds"  # of a batch, in each of its rows
PACKS = 2**14  # that Ray Data is given at a time; for the next ones the actors start again
TURN = 512  # batches of such a run that are in memory at a time
SCORE_BATCH = 512  # completions of an earlier, interrupted run that a scoring actor is given at a time


class GenerationActor:
    """`Generation` on a model that the actor loads once, when its first pack comes."""

    def __init__(self, grid: Any, spec: ModelSpec, device: str, fingerprint: str) -> None:
        self._grid_reference = grid
        self._spec = spec
        self._device = torch.device(device)
        self._fingerprint = fingerprint

    @cached_property
    def _grid(self) -> Grid:
        import ray

        grid: Grid = ray.get(self._grid_reference)
        return grid

    @cached_property
    def _loaded(self) -> LoadedModel:
        loaded = load(self._spec, self._device, getattr(torch, self._grid.config.dtype))
        if loaded.fingerprint != self._fingerprint:
            raise UserError(
                f"model {self._spec.name!r} has other weights on a node of the cluster than where the sweep was started: "
                "give every node the same files"
            )
        return loaded

    @cached_property
    def _probe(self) -> torch.Tensor:
        return probe_logits(self._loaded, next(iter(self._grid.tokens.values())))

    @cached_property
    def _stage(self) -> Generation:
        self._probe  # noqa: B018 - the logits before anything is hooked
        return Generation(self._grid, make_engine(self._grid.config, self._loaded, BlockStack(self._loaded.model)))

    def __call__(self, packs: pa.Table) -> pa.Table:
        """One pack, a list per column of CELL -> COMPLETION, and how far the unhooked model's logits have moved since it was loaded."""
        cells = pa.table({name: packs[name].combine_chunks().values for name in CELL.names}, schema=CELL)
        completions = self._stage(cells)
        change = float((probe_logits(self._loaded, next(iter(self._grid.tokens.values()))) - self._probe).abs().max())
        return completions.append_column(LOGIT_CHANGE, pa.array([change] * len(completions), pa.float64()))


class ScoringActor:
    """`Scoring` with scorers that the actor loads once; the completions go on beside their scores."""

    def __init__(
        self, names: tuple[str, ...], fingerprints: Mapping[str, str], prompts: Mapping[str, str], with_prompt: bool
    ) -> None:
        self._names = names
        self._fingerprints = fingerprints
        self._prompts = prompts
        self._with_prompt = with_prompt

    @cached_property
    def _stage(self) -> Scoring:
        scorers = load_scorers(self._names)
        if scorers.fingerprints != self._fingerprints:
            raise UserError(
                "a node of the cluster has other scorers than where the sweep was started: give every node the same files"
            )
        return Scoring(scorers, self._prompts, self._with_prompt)

    def __call__(self, completions: pa.Table) -> pa.Table:
        """COMPLETION (and more) -> the same and one float32 column per metric, null for cells that failed."""
        stage, start = self._stage, time.monotonic()
        scores = stage(completions)
        seconds = pa.array([time.monotonic() - start] * len(completions), pa.float64())
        succeeded = pc.is_null(completions["failure"])
        place = pc.if_else(succeeded, pc.subtract(pc.cumulative_sum(succeeded.cast(pa.int64())), 1), None)
        for metric in scores.column_names[len(CELL) :]:
            completions = completions.append_column(metric, scores[metric].take(place))
        return completions.append_column(SECONDS, seconds)


def run(
    plan: Plan,
    done: Iterable[Sequence[Completion]],
    keep: Callable[[Sequence[Completion]], None],
    on_progress: Progress,
    folder: Path | None = None,
) -> SweepResult:
    """What `sweep.run` does, on a Ray cluster, with the same arguments and the same result."""
    _leave_device(plan)
    with connected(plan.config.ray_address):
        return _run(plan, done, keep, on_progress, folder)


def _leave_device(plan: Plan) -> None:
    """Frees the memory of a GPU that this process fitted directions on: an actor may need it."""
    if plan.stack.device.type == "cuda":
        model: torch.nn.Module = plan.loaded.model
        model.to("cpu")
        torch.cuda.empty_cache()


def _run(
    plan: Plan,
    done: Iterable[Sequence[Completion]],
    keep: Callable[[Sequence[Completion]], None],
    on_progress: Progress,
    folder: Path | None,
) -> SweepResult:
    import ray

    _set_up_data()
    pools = make_pools([node["Resources"] for node in ray.nodes() if node["Alive"]], plan.config.device)
    work, scoring = Work(plan, folder), 0.0
    # A judge's calls are counted in one process. So with a judge all scoring is here, when the texts are written.
    scores_here = any(map(is_judge, plan.config.scorers))
    known = map(completion_batch, done)
    for batch in known if scores_here else _scored_again(known, plan, pools):
        work.add(batch)
        scoring += _seconds(batch)
    n_done = n = len(work)
    packs = plan.packs(work.is_done)
    on_progress(n, plan.n_cells, {})
    start, tokens, change = time.monotonic(), 0, 0.0
    while listed := list(islice(packs, PACKS)):
        texts = _generated(listed, plan, pools)
        for batch in _arriving(texts) if scores_here else _scored(texts, plan, pools):
            keep(completions_in(batch))
            work.add(batch)
            n += len(batch)
            scoring += _seconds(batch)
            tokens += pc.sum(batch["n_tokens"]).as_py()
            change = max(change, pc.max(batch[LOGIT_CHANGE]).as_py())
            seconds = time.monotonic() - start
            speed = {
                "tokens_per_second": tokens / seconds,
                "cells_per_second": (n - n_done) / seconds,
            }
            on_progress(n, plan.n_cells, speed)
    seconds = max(time.monotonic() - start, 1e-9)
    metrics = {
        "seconds.generation": seconds,
        "seconds.scoring": scoring,  # of all actors, beside generation; of a judge, after it
        "tokens_per_second": tokens / seconds,
        "cells_per_second": (n - n_done) / seconds,
        "hygiene.max_logit_change": change,
        "ray.generation_actors": float(pools.generators),
        "ray.scoring_actors": 0.0 if scores_here else float(pools.scorers),
    }
    begin = time.monotonic()
    work.score()
    if scores_here:
        metrics |= {"seconds.scoring": time.monotonic() - begin, **plan.inputs.scorers.costs}
    return finish(work, metrics, device=f"{pools.device}, Ray")


def _set_up_data() -> None:
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # the sweep has its own
    context.print_on_execution_start = False
    context.raise_original_map_exception = True  # so that a UserError of an actor can be told from others


def _generated(packs: Sequence[pa.Table], plan: Plan, pools: Pools) -> Any:
    """Packs -> completions: a Ray data set whose every row is one pack."""
    import ray

    types = pa.schema([(field.name, pa.list_(field.type)) for field in CELL])
    rows = [pa.table({name: [pack[name].to_pylist()] for name in CELL.names}, schema=types) for pack in packs]
    grid = ray.put(plan.grid)
    return ray.data.from_arrow(rows).map_batches(
        GenerationActor,
        fn_constructor_args=(grid, plan.loaded.spec, pools.device, plan.loaded.fingerprint),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=pools.generators, initial_size=pools.generators),
        **pools.reserved,
    )


def _scored(completions: Any, plan: Plan, pools: Pools) -> Iterator[pa.Table]:
    """Completions -> the same beside their scores, in batches, as they come."""
    import ray

    scoring, config = plan.scoring(), plan.config
    scored = completions.map_batches(
        ScoringActor,
        fn_constructor_args=(config.scorers, scoring.scorers.fingerprints, scoring.prompts, scoring.with_prompt),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=pools.scorers),
        num_cpus=pools.scorer_cpus,
    )
    yield from _arriving(scored)


def _scored_again(batches: Iterator[pa.Table], plan: Plan, pools: Pools) -> Iterator[pa.Table]:
    """The completions of an earlier, interrupted run, beside their scores."""
    import ray

    while some := list(islice(batches, TURN)):
        parts = pa.concat_tables(some).to_batches(max_chunksize=SCORE_BATCH)
        yield from _scored(ray.data.from_arrow([pa.Table.from_batches([part]) for part in parts]), plan, pools)


def _arriving(batches: Any) -> Iterator[pa.Table]:
    """A Ray data set's batches, as they come."""
    yield from batches.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def _seconds(batch: pa.Table) -> float:
    """What scoring a batch took on an actor; nothing where none scored it."""
    return float(pc.max(batch[SECONDS]).as_py()) if SECONDS in batch.column_names else 0.0

"""One sweep from settings to a finished MLflow run: checks first, keeps what is done on disk, says what it found."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from emo_mlflow.common import progress
from emo_mlflow.common.cache_folder import cache_folder
from emo_mlflow.common.termination import interruptible, terminable
from emo_mlflow.errors import Unscored, UserError
from emo_mlflow.settings.sweep import SweepConfig, SweepSettings, make_config
from emo_mlflow.settings.templates import form_line
from emo_mlflow.sweeping.resume import (
    discard,
    is_run_id,
    record_folder,
    sole_worker,
    spool_folder,
    started_with,
    unfinished,
    work_id,
)
from emo_mlflow.sweeping.spool import Spool
from emo_mlflow.types import Say

if TYPE_CHECKING:
    from emo_mlflow.sweeping.plan import Plan
    from emo_mlflow.sweeping.results import SweepResult
    from emo_mlflow.tracking.sweep_run import SweepRun

BYTES_PER_CELL = 1500  # spool, tables and MLflow's copy of them, as measured on texts of 30 tokens
SPARE_BYTES = 200 * 2**20


@dataclass(frozen=True)
class SweepRequest:
    """A sweep as asked for: a profile, the parameters given beside it, and where to log.

    Attributes:
        make: profile and parameters to settings: `make_config`, or `make_head_config` for a sweep over heads.
    """

    profile: str
    given: Mapping[str, str]
    tracking_uri: str | None
    experiment: str | None
    say: Say
    make: Callable[[str, Mapping[str, str]], SweepSettings] = make_config


def run_sweep_session(
    profile: str,
    given: Mapping[str, str | None],
    tracking_uri: str | None,
    experiment: str | None,
    say: Say,
    make: Callable[[str, Mapping[str, str]], SweepSettings] = make_config,
) -> str:
    """Does a sweep and logs it as a run, whose id it returns; on a user's mistake the run that `mlflow run` made, if any, says what it was.

    Args:
        make: as in `SweepRequest`.

    Raises:
        UserError: for anything that the user can mend.
        KeyboardInterrupt: after saying how to go on.
    """
    from emo_mlflow.tracking.lifecycle import mark_failed
    from emo_mlflow.tracking.retries import own_retries
    from emo_mlflow.tracking.store import check_store

    request = SweepRequest(profile, {name: text for name, text in given.items() if text}, tracking_uri, experiment, say, make)
    with own_retries(), terminable(), progress.bars():
        try:
            settings = make(profile, request.given)
            if settings.resume in ("none", "auto"):
                check_store(tracking_uri)
                return _start(settings, request)
            if is_run_id(settings.resume):
                return _resume(settings.resume, request)
            raise UserError(f"resume={settings.resume!r} is neither none, auto nor the id of a run: ids have 32 hexadecimal digits")
        except UserError as error:
            mark_failed(str(error), tracking_uri)
            raise


def _start(settings: SweepSettings, request: SweepRequest) -> str:
    """Begins a sweep, or goes on with one of the same work if `resume=auto` finds it."""
    from emo_mlflow.tracking.sweep_run import has_run

    plan = _plan(settings, request.tracking_uri)
    found = unfinished(work_id(plan), partial(has_run, tracking_uri=request.tracking_uri))
    if found and settings.resume == "auto":
        request.say(f"Resuming   {found}")
        with sole_worker(found):
            return _go_on(plan, found, request)
    if found:
        request.say(f"Unfinished {found} is the same sweep; --resume auto would go on with it, this is a new one")
    check_disk(plan.n_cells, cache_folder())
    return _work(plan, None, request)


def _resume(run_id: str, request: SweepRequest) -> str:
    from emo_mlflow.tracking.store import check_store, store_to_return_to

    with sole_worker(run_id):
        profile, given = started_with(run_id, request.given)
        uri = store_to_return_to(request.tracking_uri, Spool(spool_folder(run_id)).header()["store"])
        request = replace(request, profile=profile, given=given, tracking_uri=uri)
        check_store(uri)
        if _upload_finished(run_id, request):
            return run_id
        return _go_on(_plan(request.make(profile, given), request.tracking_uri), run_id, request)


def _plan(settings: SweepSettings, tracking_uri: str | None) -> Plan:
    from emo_mlflow.cluster.connection import check_ray
    from emo_mlflow.sweeping.plan import make_plan, prepare
    from emo_mlflow.tracking.store import as_active
    from emo_mlflow.tracking.sweep_run import fetch_directions

    directions = None if settings.directions == "fit" else fetch_directions(settings.directions, tracking_uri)
    if settings.engine == "ray":
        check_ray(settings.ray_address)
    with as_active(tracking_uri):  # for scorers that are logged models
        inputs = prepare(settings, directions)
    return make_plan(inputs)


def _upload_finished(run_id: str, request: SweepRequest) -> bool:
    """Logs a sweep that has only its logging left, if it has."""
    from emo_mlflow.tracking.sweep_run import upload

    if not record_folder(run_id).exists():
        return False
    request.say(f"Run        {run_id} has all its cells; logging what is left")
    lines = upload(record_folder(run_id), run_id, request.tracking_uri, request.say)
    discard(spool_folder(run_id))
    for line in lines:
        request.say(line)
    return True


def _go_on(plan: Plan, run_id: str, request: SweepRequest) -> str:
    return run_id if _upload_finished(run_id, request) else _work(plan, run_id, request)


def _work(plan: Plan, run_id: str | None, request: SweepRequest) -> str:
    """Does what is left of a sweep and logs it; `run_id` is that of the run to go on with, which this process holds. Returns the run's id."""
    plan, lines = _fix_packs(plan, run_id)
    with _held_run(plan.config, run_id, request) as tracked:
        spool = _begin(plan, tracked, request)
        asked = [f"Template   {form_line(plan.config)}"] if "template" in request.given else []
        for line in (f"Run        {tracked.run_id}", *asked, *lines):
            request.say(line)
        _finish(_compute(plan, spool, tracked), tracked, request.say)
    for line in tracked.hints():
        request.say(line)
    return tracked.run_id


@contextmanager
def _held_run(config: SweepConfig, run_id: str | None, request: SweepRequest) -> Iterator[SweepRun]:
    """The run to go on with, or a new one, open and held by this process alone; an interrupt says how to go on."""
    from emo_mlflow.tracking.lifecycle import resume_command
    from emo_mlflow.tracking.sweep_run import SweepRun

    opened = SweepRun.open(
        config, tracking_uri=request.tracking_uri, experiment=request.experiment, run_id=run_id, say=request.say
    )
    with ExitStack() as stack, opened as tracked:
        if run_id is None:
            stack.enter_context(sole_worker(tracked.run_id))
        try:
            with interruptible():
                yield tracked
        except KeyboardInterrupt:
            request.say(f"Stopped; what was finished is kept. Go on with: {resume_command(config.kind, tracked.run_id)}")
            raise
        except Unscored:
            request.say(f"All texts are written and kept, and scores so far. Go on with: {resume_command(config.kind, tracked.run_id)}")
            raise


def _finish(result: SweepResult, tracked: SweepRun, say: Say) -> None:
    """Says what was found, logs it, and removes what was kept."""
    from emo_mlflow.report.sweep import summary_lines

    for line in summary_lines(result):
        say(line)
    tracked.log(result, record_folder(tracked.run_id))
    discard(spool_folder(tracked.run_id))


def _fix_packs(plan: Plan, run_id: str | None) -> tuple[Plan, list[str]]:
    """The plan with its batch size fixed; what directions are measured against, and what the sweep will take.

    A number's last bits depend on what it was computed beside. So packs are cut from the whole sweep, in a size that is chosen once and kept.
    """
    from emo_mlflow.sweeping.estimate import estimate

    batch_size = plan.config.batch_size
    if batch_size is None and run_id is not None:
        batch_size = Spool(spool_folder(run_id)).header()["batch_size"]
    estimated = estimate(replace(plan, config=replace(plan.config, batch_size=batch_size)))
    lines = [f"Reference  {plan.inputs.prompts.compared_with}", *estimated.lines()]
    if unknown := sum(not plan.has_likelihood(condition) for condition in plan.conditions):
        lines.append(f"Price      {unknown} random conditions get no likelihood, so how broken their texts are is not known (likelihoods=all)")
    return replace(plan, config=replace(plan.config, batch_size=estimated.batch_size)), lines


def _begin(plan: Plan, tracked: SweepRun, request: SweepRequest) -> Spool:
    """The run's spool, begun or found to be of the same work."""
    from emo_mlflow.tracking.store import lasting_store

    spool = Spool(spool_folder(tracked.run_id))
    header = {
        "work": work_id(plan),
        "run_id": tracked.run_id,
        "kind": plan.config.kind,
        "store": lasting_store(tracked.client.tracking_uri),
        "profile": request.profile,
        "given": dict(request.given),
        "batch_size": plan.config.batch_size,
    }
    spool.begin(header)
    return spool


def _compute(plan: Plan, spool: Spool, tracked: SweepRun) -> SweepResult:
    """Runs what is left, each pack on disk before it is counted."""
    tracked.announce(plan.config, plan.conditions)

    def on_progress(finished: int, total: int, figures: Mapping[str, float]) -> None:
        progress.reached(progress.WRITING, finished, total)
        tracked.progress(finished, total, figures)

    run = _engine(plan.config.engine)
    return run(plan, spool.completions(), spool.keep, on_progress, spool.path.parent / "tables")


def _engine(name: str) -> Callable[..., SweepResult]:
    """What runs the stages of a sweep."""
    if name == "ray":
        from emo_mlflow.cluster.engine import run
    else:
        from emo_mlflow.sweeping.run import run
    return run


def check_disk(n_cells: int, folder: Path) -> None:
    """Refuses a sweep for whose cells the disk has no room.

    Raises:
        UserError: naming the folder, and what is needed and free.
    """
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free, needed = shutil.disk_usage(existing).free, n_cells * BYTES_PER_CELL + SPARE_BYTES
    if free < needed:
        raise UserError(
            f"{n_cells} cells need about {needed / 2**20:.0f} MiB on disk, but {existing} has {free / 2**20:.0f} MiB free: "
            "free some, or set EMO_MLFLOW_CACHE to a folder on another disk"
        )

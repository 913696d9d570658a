"""One sweep from settings to a finished MLflow run: checks first, keeps what is done on disk, says what it found."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from emo_mlflow.cards import cache_folder
from emo_mlflow.config import make_config, work_hash
from emo_mlflow.errors import UserError
from emo_mlflow.spool import Spool
from emo_mlflow.types import Cell, Completion, SweepConfig

Say = Callable[[str], None]

BYTES_PER_CELL = 1500  # spool, tables and MLflow's copy of them, as measured on texts of 30 tokens
SPARE_BYTES = 200 * 2**20
HOW = ("device", "batch_size", "child_runs")  # what may differ when a sweep is resumed


def spool_folder(run_id: str) -> Path:
    """Where a run's finished cells are kept until the run is logged."""
    return cache_folder() / "spool" / run_id


def run_sweep_session(
    profile: str, given: Mapping[str, str | None], tracking_uri: str | None, experiment: str | None, say: Say
) -> None:
    """Does a sweep and logs it; on a user's mistake the run that `mlflow run` made, if any, says what it was.

    Raises:
        UserError: for anything that the user can mend.
        KeyboardInterrupt: after saying how to go on.
    """
    from emo_mlflow.run_context import check_store, mark_failed

    try:
        given = {name: text for name, text in given.items() if text}
        config = make_config(profile, given)
        check_store(tracking_uri)
        if config.resume != "none":
            profile, given = _resumed(config.resume, given)
            config = make_config(profile, given)
        _sweep(config, profile, given, tracking_uri, experiment, say)
    except UserError as error:
        mark_failed(str(error), tracking_uri)
        raise


def _resumed(run_id: str, given: Mapping[str, str | None]) -> tuple[str, dict[str, str | None]]:
    """The profile and parameters that a run was started with; those given beside `resume` may only say how, not what.

    Raises:
        UserError: if there is nothing to resume, or another value is given for what the run was started with.
    """
    if not re.fullmatch(r"[0-9a-f]{32}", run_id):
        raise UserError(f"resume={run_id!r} is not the id of a run: ids have 32 hexadecimal digits")
    header = Spool(spool_folder(run_id)).header()
    started = dict(header["given"])
    for name, text in given.items():
        if name not in (*HOW, "resume") and started.get(name) != text:
            raise UserError(
                f"{name}={text!r} is not what run {run_id} was started with ({started.get(name) or 'its default'}): "
                "leave it out, or start a new run"
            )
    return str(header["profile"]), {**started, **given}


def _sweep(
    config: SweepConfig,
    profile: str,
    given: Mapping[str, str | None],
    tracking_uri: str | None,
    experiment: str | None,
    say: Say,
) -> None:
    """Prepares, announces, runs and logs."""
    from emo_mlflow.estimate import estimate
    from emo_mlflow.report.sweep import summary_lines
    from emo_mlflow.sweep import make_plan, prepare, run
    from emo_mlflow.tracking import SweepRun, fetch_directions

    directions = None if config.directions == "fit" else fetch_directions(config.directions, tracking_uri)
    inputs = prepare(config, directions)
    resumed = None if config.resume == "none" else config.resume
    with SweepRun.open(inputs.config, tracking_uri=tracking_uri, experiment=experiment, run_id=resumed) as tracked:
        try:
            plan = make_plan(inputs)
            check_disk(plan.n_cells, spool_folder(tracked.run_id))
            for line in (f"Run        {tracked.run_id}", *estimate(plan).lines()):
                say(line)
            spool = Spool(spool_folder(tracked.run_id))
            spool.begin(
                {"work": work_hash(replace(plan.config, resume="none")), "profile": profile, "given": dict(given)}
            )
            done = [_completion(record) for record in spool.read()]
            with tqdm(total=plan.n_cells, unit="cell", disable=None, file=sys.stderr) as bar:

                def progress(finished: int, total: int, figures: Mapping[str, float]) -> None:
                    bar.update(finished - bar.n)
                    tracked.progress(finished, total, figures)

                result = run(plan, done, lambda pack: spool.append([asdict(c) for c in pack]), progress)
            tracked.log(result)
        except KeyboardInterrupt:
            say(f"Stopped; what was finished is kept. Go on with: emo-mlflow sweep --resume {tracked.run_id}")
            raise
    shutil.rmtree(spool_folder(tracked.run_id), ignore_errors=True)
    for line in (*summary_lines(result), *tracked.hints()):
        say(line)


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


def _completion(record: Mapping[str, Any]) -> Completion:
    return Completion(**{**record, "cell": Cell(**record["cell"])})

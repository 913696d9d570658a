"""One sweep from settings to a finished MLflow run: checks first, keeps what is done on disk, says what it found."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from emo_mlflow.cards import cache_folder
from emo_mlflow.config import make_config, work_hash
from emo_mlflow.errors import UserError
from emo_mlflow.report.sweep import summary_lines
from emo_mlflow.spool import Spool
from emo_mlflow.tracking import SweepRun, check_store, fetch_directions, mark_failed
from emo_mlflow.types import Cell, Completion, SweepConfig

Say = Callable[[str], None]

BYTES_PER_CELL = 1500  # spool, tables and MLflow's copy of them, as measured on texts of 30 tokens
SPARE_BYTES = 200 * 2**20


def spool_folder(run_id: str) -> Path:
    """Where a run's finished cells are kept until the run is logged."""
    return cache_folder() / "spool" / run_id


def run_sweep_session(
    profile: str, given: Mapping[str, str | None], tracking_uri: str | None, experiment: str | None, say: Say
) -> None:
    """Does a sweep and logs it; on a user's mistake the run that `mlflow run` made, if any, is marked as failed.

    Raises:
        UserError: for anything that the user can mend.
        KeyboardInterrupt: after saying how to go on.
    """
    try:
        config = make_config(profile, given)
        check_store(tracking_uri)
        if config.resume != "none":
            config = _resumed(config, given)
        _sweep(config, tracking_uri, experiment, say)
    except UserError as error:
        mark_failed(str(error), tracking_uri)
        raise


def _resumed(config: SweepConfig, given: Mapping[str, str | None]) -> SweepConfig:
    """The settings that the run to resume was started with; what is given beside `resume` may only say how, not what."""
    if not re.fullmatch(r"[0-9a-f]{32}", config.resume):
        raise UserError(f"resume={config.resume!r} is not the id of a run: ids have 32 hexadecimal digits")
    header = Spool(spool_folder(config.resume)).header()
    started = make_config(header["profile"], header["given"])
    how = ("device", "batch_size", "child_runs")
    changes = {name: getattr(config, name) for name in how if given.get(name)}
    if clash := sorted(name for name, text in given.items() if text and name not in (*how, "resume") and getattr(config, name) != getattr(started, name)):
        raise UserError(f"{clash[0]} differs from what run {config.resume} was started with: leave it out, or start a new run")
    return replace(started, resume=config.resume, **changes)

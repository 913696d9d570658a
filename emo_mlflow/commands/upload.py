"""`emo-mlflow upload`: logs what is left of a sweep that was finished while its store was away."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from emo_mlflow.errors import UserError
from emo_mlflow.sweeping.resume import (
    is_run_id,
    record_folder,
    sole_worker,
    spool_folder,
)
from emo_mlflow.sweeping.spool import CELLS, Spool
from emo_mlflow.types import Say


def run_upload_session(source: str, tracking_uri: str | None, say: Say) -> None:
    """Logs what is left of a sweep that was finished while its store was away.

    Args:
        source: the run's id, or the folder that holds its cells and its record.
        tracking_uri: None for the store that the run was opened in.

    Raises:
        UserError: if there is nothing to upload, or the store does not take it.
    """
    from emo_mlflow.tracking.lifecycle import resume_command
    from emo_mlflow.tracking.retries import own_retries
    from emo_mlflow.tracking.store import check_store, store_to_return_to
    from emo_mlflow.tracking.sweep_run import upload

    if not Path(source).is_dir() and not is_run_id(source):
        raise UserError(f"{source!r} is neither a folder nor the id of a run: ids have 32 hexadecimal digits")
    folder = Path(source) if Path(source).is_dir() else spool_folder(source)
    if not (folder / CELLS).exists():
        raise UserError(f"{folder} has nothing to upload: the run is logged already, or was begun on another machine")
    header = Spool(folder).header()
    run_id = str(header["run_id"])
    if not is_run_id(run_id):
        raise UserError(f"{folder / CELLS} names no run")
    if not (folder / record_folder(run_id).name).exists():
        raise UserError(f"run {run_id} is not finished: go on with {resume_command(header.get('kind', 'sweep'), run_id)}")
    uri = store_to_return_to(tracking_uri, header["store"])
    with own_retries(), sole_worker(run_id):
        check_store(uri)
        lines = upload(folder / record_folder(run_id).name, run_id, uri, say)
        _remove_uploaded(folder, folder / record_folder(run_id).name)
    for line in lines:
        say(line)


def _remove_uploaded(folder: Path, record: Path) -> None:
    """Removes what was logged, and the folder if nothing else lies in it: it may be one that a person named."""
    Spool(folder).path.unlink()  # first: cells without their record would be gone on with
    shutil.rmtree(record)
    with suppress(OSError):
        folder.rmdir()

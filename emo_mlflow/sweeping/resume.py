"""Which unfinished sweep is gone on with. Finished cells stay on the machine that made them, and one process at a time works on a run."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from emo_mlflow.common.cache_folder import cache_folder
from emo_mlflow.errors import UserError
from emo_mlflow.prompts.selection import fit_hash
from emo_mlflow.settings.sweep import HOW, work_hash
from emo_mlflow.sweeping.plan import Plan
from emo_mlflow.sweeping.spool import CELLS, Spool
from emo_mlflow.types import digest

DONE = ".done"
RUN_ID = re.compile(r"[0-9a-f]{32}")


def spool_folder(run_id: str) -> Path:
    """Where a run's finished cells are kept until the run is logged."""
    return _root() / run_id


def record_folder(run_id: str) -> Path:
    """Where a run's record is kept from the end of the computation until it is logged."""
    return spool_folder(run_id) / "record"


def _root() -> Path:
    return cache_folder() / "spool"


@contextmanager
def sole_worker(run_id: str) -> Iterator[None]:
    """Holds a run for this process; the system lets go of it when the process ends, however it ends.

    Raises:
        UserError: if another process of this machine holds it.
    """
    path = _root() / f"{run_id}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"another process is working on run {run_id}: wait until it ends, or stop it; then resume"
        ) from None
    try:
        yield
    finally:
        if not spool_folder(run_id).exists():
            path.unlink(missing_ok=True)
        lock.release()


def discard(folder: Path) -> None:
    """Removes what was kept of a run that is logged. The folder is renamed first: a resume would take a half-removed one for work to go on with."""
    folder.rename(folder.with_name(f"{folder.name}{DONE}"))
    for left in folder.parent.glob(f"*{DONE}"):
        shutil.rmtree(left, ignore_errors=True)


def is_run_id(text: str) -> bool:
    """Whether a text can be a run's id; nothing else becomes part of a path."""
    return RUN_ID.fullmatch(text) is not None


def started_with(run_id: str, given: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """The profile and parameters that a run was started with; those given beside `resume` may only say how, not what.

    Raises:
        UserError: if there is nothing to resume, or another value is given for what the run was started with.
    """
    header = Spool(spool_folder(run_id)).header()
    started = dict(header["given"])
    for name, text in given.items():
        if name not in HOW and started.get(name) != text:
            raise UserError(
                f"{name}={text!r} is not what run {run_id} was started with ({started.get(name) or 'its default'}): "
                "leave it out, or start a new run"
            )
    return str(header["profile"]), {**started, **given}


def work_id(plan: Plan) -> str:
    """Identifies what a sweep computes: its settings, its texts, what is asked, and the model's weights."""
    prompts = plan.inputs.prompts
    tested = [prompt.prompt_id for prompt in prompts.test]
    asked = [condition.condition_id for condition in plan.inputs.asking]
    return digest([work_hash(plan.config), plan.loaded.fingerprint, fit_hash(prompts.fit), tested, *([asked] if asked else [])])


def kept() -> list[Path]:
    """Folders of the runs whose finished cells are kept on this machine, the newest first."""
    folders = [path.parent for path in _root().glob(f"*/{CELLS}") if is_run_id(path.parent.name)]
    return sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True)


def unfinished(work: str, is_there: Callable[[str], bool]) -> str | None:
    """The newest run on this machine that began the same work and did not log it.

    Args:
        is_there: whether the tracking store has a run of this id.
    """
    for folder in kept():
        try:
            found = Spool(folder).header()["work"]
        except UserError:
            continue
        if found == work and is_there(folder.name):
            return folder.name
    return None

"""Real processes that run the command and are killed: at a random moment from outside, or by themselves at an exact call.

They are forked from a server that has torch, transformers and mlflow loaded, so that each takes a second and not ten.
"""

from __future__ import annotations

import functools
import importlib
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LOADED = [
    "emo_mlflow.cli.main", "emo_mlflow.commands.sweep", "emo_mlflow.sweeping.run", "emo_mlflow.tracking.sweep_run", "emo_mlflow.sweeping.estimate",
    "emo_mlflow.tracking.reading",
    "transformers.models.gpt2.modeling_gpt2", "matplotlib.pyplot", "sqlalchemy.dialects.sqlite", "mlflow.store.tracking.sqlalchemy_store",
]  # fmt: skip
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(LOADED)


@dataclass(frozen=True)
class Setup:
    """Where and how a process runs.

    Attributes:
        die_at: (dotted name of a function, n): the process kills itself when it calls it for the n-th time.
        largest_file: bytes past which writing a file fails, as on a full disk.
    """

    folder: Path
    die_at: tuple[str, int] | None = None
    largest_file: int | None = None


def start(words: Sequence[str], setup: Setup) -> multiprocessing.Process:
    """Starts `emo-mlflow WORDS`; what it prints goes to output.txt, the packs it decodes are counted in packs.txt."""
    process = _context.Process(target=_command, args=(list(words), setup))
    process.start()
    return process


def run(words: Sequence[str], setup: Setup) -> int:
    """The same, and waits; the exit code, or minus the signal."""
    process = start(words, setup)
    process.join(120)
    assert process.exitcode is not None, "the process hangs"
    return process.exitcode


def kill_after(words: Sequence[str], setup: Setup, seconds: float) -> bool:
    """Kills the process after some seconds; False if it was done before."""
    process = start(words, setup)
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
    assert process.exitcode in (0, -signal.SIGKILL), output(setup.folder)[-3000:]
    return process.exitcode == -signal.SIGKILL


def output(folder: Path) -> str:
    """What all processes of a folder printed."""
    return (folder / "output.txt").read_text(encoding="utf-8")


def packs_decoded(folder: Path) -> int:
    """How often a pack's decoding was begun, in all processes of a folder."""
    path = folder / "packs.txt"
    return len(path.read_bytes()) if path.exists() else 0


def _command(words: list[str], setup: Setup) -> None:
    os.chdir(setup.folder)
    os.environ["EMO_MLFLOW_CACHE"] = str(setup.folder / "cache")
    log = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    _before("emo_mlflow.steering.engine.PackDecoder.run", _count_pack)
    if setup.die_at:
        name, n = setup.die_at
        calls = iter(range(1, n + 1))
        _before(name, lambda: os.kill(os.getpid(), signal.SIGKILL) if next(calls) == n else None)
    if setup.largest_file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (setup.largest_file, setup.largest_file))
    from emo_mlflow.cli.main import main

    main(words)


def _count_pack() -> None:
    with open("packs.txt", "ab") as file:
        file.write(b".")


def _before(name: str, do) -> None:  # type: ignore[no-untyped-def]
    """Makes a function do something before its own work."""
    parts = name.split(".")
    for i in range(len(parts) - 1, 0, -1):
        try:
            owner = importlib.import_module(".".join(parts[:i]))
        except ImportError:
            continue
        break
    for part in parts[i:-1]:
        owner = getattr(owner, part)
    real = getattr(owner, parts[-1])

    @functools.wraps(real)
    def wrapped(*args, **kwargs):  # type: ignore[no-untyped-def]
        do()
        return real(*args, **kwargs)

    setattr(owner, parts[-1], wrapped)


def seconds(do) -> float:  # type: ignore[no-untyped-def]
    """How long something takes."""
    begin = time.monotonic()
    do()
    return time.monotonic() - begin

"""Interrupts stay interrupts, and SIGTERM is one: schedulers, containers and `mlflow run` end a process with it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def terminable() -> Iterator[None]:
    """While open, SIGTERM raises KeyboardInterrupt, so that a run says that it was stopped."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # only there can a signal be handled
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def interruptible() -> Iterator[None]:
    """While open, an error that an interrupt caused becomes that interrupt: PyTorch's vmap, interrupted, fails with an error of its own."""
    try:
        yield
    except Exception as error:
        if _interrupted(error):
            raise KeyboardInterrupt from error
        raise


def _interrupted(error: BaseException | None) -> bool:
    """Whether an error was raised while an interrupt was handled."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None

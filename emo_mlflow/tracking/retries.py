"""Requests to a tracking store that may be slow, broken or away: which are tried again, for how long, and in which thread."""

from __future__ import annotations

import os
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import requests
from mlflow.exceptions import MlflowException

T = TypeVar("T")

PATIENCE = 120.0  # seconds without an answer after which a finished sweep stops waiting for its store
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0
REQUEST_SECONDS = 60  # MLflow's own limit for an answer is 120
PARTING_SECONDS = 5  # for telling a store that a sweep was stopped


@contextmanager
def own_retries(seconds: int | None = None) -> Iterator[None]:
    """Turns MLflow's retries off: they take minutes, and they repeat a creation whose answer was lost, which makes two runs of one.

    Args:
        seconds: how long a request may take; None for MLFLOW_HTTP_REQUEST_TIMEOUT, or a minute where that is not set.
    """
    limits = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    limits["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(seconds or os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT", REQUEST_SECONDS))
    before = {name: os.environ.get(name) for name in limits}
    os.environ.update(limits)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed later: there was no answer, or one that says too busy (408, 429) or broken (5xx)."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        status = error.response.status_code
    elif isinstance(error, MlflowException):
        status = error.get_http_status_code()
    else:
        return isinstance(error, requests.RequestException)
    return status in (408, 429) or status >= 500


@dataclass(frozen=True)
class Retry:
    """Makes a request, again and again while it may pass, with growing pauses.

    Not by tenacity, which makes one more request after it was told to stop, and whose set-up is as long as the loop below.

    Attributes:
        patience: seconds from a request's first attempt after which its error is raised; infinity for never.
        stop: set from outside to stop trying.
        on_trouble: told of every attempt that failed and is made again.
    """

    patience: float = float("inf")
    stop: threading.Event = field(default_factory=threading.Event)
    on_trouble: Callable[[BaseException], None] = lambda error: None

    def __call__(self, request: Callable[[], T]) -> T:
        """The request's result.

        Raises:
            Exception: the request's, if trying again does not help, is not wanted, or did not help in time.
        """
        start, pause = time.monotonic(), FIRST_PAUSE
        while True:
            try:
                return request()
            except Exception as error:
                late = time.monotonic() + pause - start > self.patience
                if not may_pass(error) or late:
                    raise
                self.on_trouble(error)
                if self.stop.wait(pause * random.uniform(0.5, 1.0)):
                    raise
            pause = min(2 * pause, LONGEST_PAUSE)


class Background:
    """A thread that does jobs one after another while the sweep computes. A job that fails is dropped: what matters is logged again."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def send(self, job: Callable[[], None]) -> None:
        """Adds a job and returns at once."""
        self._jobs.put(job)

    def stop(self, seconds: float | None = None) -> None:
        """Waits for the job at hand, at most so long; those after it are dropped."""
        self._stopped.set()
        self._jobs.put(None)
        self._thread.join(seconds)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None and not self._stopped.is_set():
            try:
                job()
            except (MlflowException, OSError):
                continue

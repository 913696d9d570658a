"""Addresses of tracking stores: whether one answers, how it is kept, how it is shown."""

from __future__ import annotations

import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from urllib.parse import urlsplit, urlunsplit

from mlflow import MlflowClient, get_tracking_uri, is_tracking_uri_set, set_tracking_uri
from mlflow.artifacts import download_artifacts
from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException

from emo_mlflow.common.deadline import within
from emo_mlflow.errors import UserError

SQLITE = "sqlite:///"
STORE_SECONDS = 8.0
PROGRESS_BAR = "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"


def check_store(tracking_uri: str | None) -> None:
    """Whether MLflow has such a kind of store, and whether a tracking server is there, which it is asked for ten seconds at most.

    Raises:
        UserError: if not; MLflow's own retries would take minutes to say so.
    """
    uri = tracking_uri or get_tracking_uri()
    if uri.startswith(SQLITE):
        return  # asking it would make its tables, which takes seconds
    try:
        MlflowClient(uri)
    except UnsupportedModelRegistryStoreURIException:
        raise UserError(f"the tracking store {shown(uri)} is of no kind that MLflow knows: give http://... or sqlite:///mlflow.db") from None
    if not uri.startswith(("http://", "https://")):
        return
    try:
        within(STORE_SECONDS, lambda: urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=STORE_SECONDS).close())
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"the tracking server {shown(uri)} does not answer ({reason}): start it, correct --tracking-uri, or leave it out to log to ./mlflow.db"
        ) from None


@cache
def _fetched() -> TemporaryDirectory[str]:
    """Where artifacts are fetched to: gone when the process ends, which MLflow's own folders are not."""
    return TemporaryDirectory(prefix="emo_mlflow_")


def fetch(run_id: str, name: str, tracking_uri: str | None) -> Path:
    """An artifact of a run as a local file, which is there as long as this process.

    Without MLflow's progress bar, unless the user has set that: a table is no download to watch.

    Raises:
        MlflowException, OSError: if the run, or the artifact, is not there.
    """
    unset = PROGRESS_BAR not in os.environ
    os.environ.setdefault(PROGRESS_BAR, "false")
    try:
        return Path(download_artifacts(run_id=run_id, artifact_path=name, tracking_uri=tracking_uri, dst_path=mkdtemp(dir=_fetched().name)))
    finally:
        if unset:
            os.environ.pop(PROGRESS_BAR, None)


def lasting_store(uri: str) -> str:
    """A tracking store's address as it can be kept on disk: without a password, and with a path that holds in every folder."""
    if uri.startswith(SQLITE):
        return f"{SQLITE}{Path(uri.removeprefix(SQLITE)).absolute()}"
    parts = urlsplit(uri)
    if parts.password is None:
        return uri
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username}@{host}"))


def store_to_return_to(tracking_uri: str | None, kept: str) -> str:
    """Where a run that was begun earlier is gone on with: in the store asked for, else in the one that it was begun in.

    Args:
        kept: that store, as `lasting_store` gave it; if it is MLflow's active one, that address is used, which may have a password.
    """
    if tracking_uri:
        return tracking_uri
    active = str(get_tracking_uri())
    return active if lasting_store(active) == kept else kept


def shown(uri: str) -> str:
    """A store's address as it may be printed and logged: without the user, password or token that it may hold."""
    return re.sub(r"://[^/\s]*@", "://***@", uri)


def active_store(tracking_uri: str | None) -> str:
    """The store asked for, or the one that MLflow has as active."""
    return tracking_uri or str(get_tracking_uri())


@contextmanager
def as_active(uri: str | None) -> Iterator[None]:
    """Makes the store asked for MLflow's active one for a while, in which `models:/` is looked for too."""
    if uri is None:
        yield
        return
    before = get_tracking_uri() if is_tracking_uri_set() else None
    set_tracking_uri(uri)
    try:
        yield
    finally:
        set_tracking_uri(before)  # type: ignore[arg-type]  # None, which it takes, leaves none set


def sqlite_path(uri: str) -> Path | None:
    """The database's file, if the store is one."""
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def ask_store(uri: str) -> None:
    """Reads one experiment, without MLflow's retries.

    Raises:
        MlflowException: what the store says.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    MlflowClient(uri).search_experiments(max_results=1)

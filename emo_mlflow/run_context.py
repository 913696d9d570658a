"""The MLflow run that a command logs to, from its opening to its end: which run it is, what it is tagged with, how it ends."""

from __future__ import annotations

import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from mlflow import MlflowClient, get_tracking_uri
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags

from emo_mlflow import __version__
from emo_mlflow.errors import UserError

KIND, VERSION, FAILURE, RESUMED = "emo.kind", "emo.version", "emo.failure", "emo.resumed"
TAG_LENGTH = 5000
SQLITE = "sqlite:///"


def check_store(tracking_uri: str | None) -> None:
    """Asks a tracking server whether it is there, within ten seconds.

    Raises:
        UserError: if it is not; MLflow's own retries would take minutes to say so.
    """
    uri = tracking_uri or get_tracking_uri()
    if not uri.startswith(("http://", "https://")):
        return
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=8):
            return
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"the tracking server {shown(uri)} does not answer ({reason}): start it, correct --tracking-uri, or leave it out to log to ./mlflow.db"
        ) from None


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


def run_of_project() -> str | None:
    """The id of the run that `mlflow run` made for this process, if it made one."""
    return os.environ.get("MLFLOW_RUN_ID") or None


def experiment_name(client: MlflowClient, name: str | None) -> str:
    """The experiment asked for, or the one that MLflow has as active, or Default."""
    active = os.environ.get("MLFLOW_EXPERIMENT_ID", "0")
    return name or os.environ.get("MLFLOW_EXPERIMENT_NAME") or str(client.get_experiment(active).name)


def open_run(
    client: MlflowClient,
    kind: str,
    name: str,
    *,
    tags: Mapping[str, str] | None = None,
    experiment: str | None = None,
    run_id: str | None = None,
) -> str:
    """Opens the run to go on with, or the one that `mlflow run` made, or a new one; returns its id. It is then RUNNING and tagged.

    Args:
        kind: what the run is, for the tag emo.kind: sweep, comparison, ...
        tags: further ones. A run that is resumed skips MLflow's run-context providers, so what must be there is set here.
        experiment: of a new run; created if there is none of that name; None for MLflow's active one.
        run_id: of the run to go on with.

    Raises:
        UserError: if the store does not let it be opened.
    """
    tags = {KIND: kind, VERSION: __version__, **(tags or {})}
    made = run_of_project()
    try:
        if run_id and made and made != run_id:
            client.set_tag(made, RESUMED, run_id)  # `mlflow run` made a run that stays empty: it says where the work went
        run_id = run_id or made
        if run_id is None:
            where = _experiment_id(client, experiment)
            return str(client.create_run(where, tags={**resolve_tags(), **tags}, run_name=name).info.run_id)
        client.update_run(run_id, status="RUNNING", name=name)
        for key, value in tags.items():
            client.set_tag(run_id, key, value)
        return run_id
    except MlflowException as error:
        raise UserError(f"cannot open a run in {shown(client.tracking_uri)}: {str(error).splitlines()[0]}") from None


def end_run(client: MlflowClient, run_id: str, error: BaseException | None = None) -> None:
    """Ends a run as FINISHED, as KILLED after an interrupt, or as FAILED with the reason in the tag emo.failure.

    A store that does not take the failure does not hide the error that caused it.
    """
    if error is None:
        client.set_terminated(run_id, "FINISHED")
        return
    stopped = isinstance(error, KeyboardInterrupt)
    reason = "interrupted" if stopped else str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    try:
        client.set_tag(run_id, FAILURE, reason[:TAG_LENGTH])
        client.set_terminated(run_id, "KILLED" if stopped else "FAILED")
    except MlflowException:
        return


@contextmanager
def run_context(
    client: MlflowClient,
    kind: str,
    name: str,
    *,
    tags: Mapping[str, str] | None = None,
    experiment: str | None = None,
    run_id: str | None = None,
) -> Iterator[str]:
    """`open_run` and, when the block is left, `end_run`; yields the run's id."""
    run_id = open_run(client, kind, name, tags=tags, experiment=experiment, run_id=run_id)
    try:
        yield run_id
    except BaseException as error:
        end_run(client, run_id, error)
        raise
    end_run(client, run_id)


def mark_failed(reason: str, tracking_uri: str | None) -> None:
    """Marks the run that `mlflow run` made for this process, if it made one, as FAILED for this reason."""
    run_id = run_of_project()
    if run_id:
        end_run(MlflowClient(tracking_uri), run_id, UserError(reason))


def _experiment_id(client: MlflowClient, name: str | None) -> str:
    name = name or os.environ.get("MLFLOW_EXPERIMENT_NAME")
    if name is None:
        return os.environ.get("MLFLOW_EXPERIMENT_ID", "0")
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found else client.create_experiment(name))

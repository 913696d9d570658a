"""The MLflow run that a command logs to, from its opening to its end: which run it is, what it is tagged with, how it ends."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from emo_mlflow import __version__
from emo_mlflow.common.names import short_name
from emo_mlflow.common.termination import interruptible
from emo_mlflow.errors import UserError, reason_of
from emo_mlflow.report.blocks import escape
from emo_mlflow.tracking.store import shown
from emo_mlflow.tracking.values import log_values

KIND, VERSION, FAILURE, RESUMED = "emo.kind", "emo.version", "emo.failure", "emo.resumed"
TAG_LENGTH = 5000
RESUMABLE = ("sweep", "heads", "study")


def run_of_project() -> str | None:
    """The id of the run that `mlflow run` made for this process, if it made one."""
    return os.environ.get("MLFLOW_RUN_ID") or None


def experiment_name(client: MlflowClient, name: str | None) -> str:
    """The experiment asked for, or the one that MLflow has as active, or Default."""
    active = os.environ.get("MLFLOW_EXPERIMENT_ID", "0")
    return name or os.environ.get("MLFLOW_EXPERIMENT_NAME") or str(client.get_experiment(active).name)


def run_name(model: str, what: str) -> str:
    """A run's name, the model first: MLflow's table of runs cuts names off at 17 letters."""
    return f"{short_name(model)} {what}"


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
        raise UserError(f"cannot open a run in {shown(client.tracking_uri)}: {reason_of(error)}") from None


def resume_command(kind: str, run_id: str) -> str:
    """How to go on with a sweep, a sweep of heads or a study."""
    return f"emo-mlflow {kind} --resume {run_id}"


def end_run(client: MlflowClient, run_id: str, error: BaseException | None = None, kind: str = "") -> None:
    """Ends a run as FINISHED, as KILLED after an interrupt, or as FAILED; the reason is in the tag emo.failure and in the run's description.

    A store that does not take the failure does not hide the error that caused it.

    Args:
        kind: of a run that can be resumed; the description says how.
    """
    if error is None:
        client.set_terminated(run_id, "FINISHED")
        return
    stopped = isinstance(error, KeyboardInterrupt)
    reason = "interrupted" if stopped else str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    try:
        note = _note(reason, resume_command(kind, run_id) if kind in RESUMABLE else "")
        log_values(client, run_id, tags={FAILURE: reason[:TAG_LENGTH], MLFLOW_RUN_NOTE: note[:TAG_LENGTH]})
        client.set_terminated(run_id, "KILLED" if stopped else "FAILED")
    except MlflowException:
        return


def _note(reason: str, command: str) -> str:
    return f"Not finished: {escape(reason)}" + (f"\n\nWhat was finished is kept where it ran. Go on there with `{command}`" if command else "")


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
        with interruptible():
            yield run_id
    except BaseException as error:
        end_run(client, run_id, error, kind)
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

"""What a run found, where MLflow's table of runs shows it: a tag per emotion, and a saved view of the experiment with a column for each.

The view is in the list *Views* above the table, as `Answers`. MLflow keeps a view in a tag of the experiment; the form is that of MLflow 3.17.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from emo_mlflow.tracking.values import log_values, metric_name, milliseconds

ANSWER = "emo.answer"
KEY, NAME = "emo_mlflow", "Answers"
VIEW = f"mlflow.sharedViewState.{KEY}"
VIEW_LENGTH = 5000  # MLflow's limit of an experiment's tag
WIDTHS = {"attributes.`Run Name`": 245, "runDateAndNestInfo": 145, "duration": 75}  # pixels; with three emotions they fill a page of 1400
ANSWER_WIDTH = 195


def log_answers(client: MlflowClient, run_id: str, answers: Mapping[str, str]) -> None:
    """Tags a run with its answers, and shows them in its experiment's view."""
    log_values(client, run_id, tags=answer_tags(answers))
    show_answers(client, client.get_run(run_id).info.experiment_id, answers)


def answer_tags(answers: Mapping[str, str]) -> dict[str, str]:
    """`emo.answer.<emotion>` with a few words each."""
    return {f"{ANSWER}.{emotion}": text for emotion, text in answers.items()}


def show_answers(client: MlflowClient, experiment_id: str, emotions: Iterable[str]) -> None:
    """Gives the experiment's view a column for each of these emotions; what a person changed in it stays, and a store may refuse it."""
    with suppress(MlflowException):
        old = client.get_experiment(experiment_id).tags.get(VIEW)
        new = widened(old, [f"tags.`{metric_name(f'{ANSWER}.{emotion}')}`" for emotion in emotions], milliseconds())
        if new is not None and new != old and len(new) <= VIEW_LENGTH:
            client.set_experiment_tag(experiment_id, VIEW, new)


def widened(view: str | None, columns: Iterable[str], now: int) -> str | None:
    """A view with further columns, as MLflow keeps it.

    Args:
        view: as it is, None if there is none.
        now: milliseconds since 1970.

    Returns:
        The view; None if a person saved their own in its place, which MLflow keeps compressed.
    """
    try:
        envelope: dict[str, Any] = json.loads(view) if view else {"name": NAME, "createdAt": now, "updatedAt": now}
        state = json.loads(envelope.get("state", "{}"))
    except ValueError:
        return None
    missing = [column for column in columns if column not in state.get("selectedColumns", ())]
    if view and not missing:
        return view
    state["selectedColumns"] = [*state.get("selectedColumns", ()), *missing]
    state["columnOrder"] = [*state.get("columnOrder", WIDTHS), *missing]
    state["columnWidths"] = {**state.get("columnWidths", WIDTHS), **dict.fromkeys(missing, ANSWER_WIDTH)}
    return json.dumps({**envelope, "updatedAt": now, "state": json.dumps(state, ensure_ascii=False)}, ensure_ascii=False)

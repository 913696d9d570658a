"""Reading finished studies back from MLflow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from emo_mlflow.common.columns import read_parquet
from emo_mlflow.common.names import short_name
from emo_mlflow.errors import UserError, reason_of
from emo_mlflow.studying.across_models import ANSWERS, DAMAGE, RUNGS, PastStudy
from emo_mlflow.tracking.lifecycle import KIND, resume_command
from emo_mlflow.tracking.store import fetch
from emo_mlflow.tracking.study import CHANGED, STUDY


def studies_among(ids: Sequence[str], tracking_uri: str | None) -> list[str]:
    """Those of the runs that are studies; a run that does not exist is none.

    Raises:
        UserError: if some are and some are not.
    """
    client = MlflowClient(tracking_uri)
    kinds: dict[str, str] = {}
    for run_id in ids:
        try:
            kinds[run_id] = client.get_run(run_id).data.tags.get(KIND, "a run of something else")
        except MlflowException:
            kinds[run_id] = "missing"
    studies = [run_id for run_id in ids if kinds[run_id] == STUDY]
    others = [run_id for run_id in ids if kinds[run_id] not in (STUDY, "missing")]
    if studies and others:
        raise UserError(f"run {studies[0]} is a study, and run {others[0]} is {kinds[others[0]]}: compare studies with studies, sweeps with sweeps")
    return studies


def load_study(run_id: str, tracking_uri: str | None = None) -> PastStudy:
    """The finished study that a run holds.

    Raises:
        UserError: if the run does not exist, was deleted, is no study, has not finished, or lacks a file; the message names the run.
    """
    try:
        run = MlflowClient(tracking_uri).get_run(run_id)
    except MlflowException as error:
        raise UserError(f"there is no run {run_id!r} in this store: {reason_of(error)}") from None
    who = f"run {run_id} ({run.info.run_name})"
    if (kind := run.data.tags.get(KIND)) != STUDY:
        raise UserError(f"{who} is no study but {kind or 'a run of something else'}")
    if run.info.lifecycle_stage == "deleted":
        raise UserError(f"{who} was deleted: restore it with `mlflow runs restore --run-id {run_id}`")
    if run.info.status != "FINISHED":
        raise UserError(f"{who} is {run.info.status}: go on with `{resume_command(STUDY, run_id)}`")
    design, config = (_json(run_id, name, tracking_uri) for name in ("design.json", "config.json"))
    settings = config.pop("config", {})
    if not _is_design(design):
        raise UserError(f"design.json of run {run_id} is no design of a study: the file is damaged")
    return PastStudy(
        run_id=run_id,
        model=short_name(str(settings.get("model", run_id))),
        design=design,
        config=settings,
        facts=config,
        verdicts=_table(run_id, "verdicts", [*ANSWERS, *RUNGS], tracking_uri),
        damage=_table(run_id, "damage", ["emotion", *DAMAGE], tracking_uri),
        changed=CHANGED in run.data.tags,
    )


def _is_design(design: Mapping[str, Any]) -> bool:
    try:
        places = [(place["emotion"], place["metric"], place["alpha_unit"], len(place["layers"]), float(place["alpha"])) for place in design["places"]]
        return bool(places) and isinstance(design["prompts"], list) and isinstance(design["procedure"], str)
    except (KeyError, TypeError, ValueError):
        return False


def _file(run_id: str, name: str, tracking_uri: str | None) -> Path:
    try:
        return fetch(run_id, name, tracking_uri)
    except (MlflowException, OSError) as error:
        raise UserError(f"run {run_id} has no artifact {name}: {reason_of(error)}") from None


def _json(run_id: str, name: str, tracking_uri: str | None) -> dict[str, Any]:
    try:
        found = json.loads(_file(run_id, name, tracking_uri).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{name} of run {run_id} is no JSON object: the file is damaged")
    return found


def _table(run_id: str, name: str, columns: Sequence[str], tracking_uri: str | None) -> pd.DataFrame:
    path = _file(run_id, f"{name}.parquet", tracking_uri)
    try:
        found = read_parquet(path)
    except Exception as error:  # of Arrow, or of pandas over the metadata that the file holds for it
        raise UserError(f"{name}.parquet of run {run_id} cannot be read ({reason_of(error)}): the file is damaged") from None
    if missing := [column for column in columns if column not in found]:
        raise UserError(f"{name}.parquet of run {run_id} has no column {missing[0]!r}: it is of another version of emo_mlflow; run the study again")
    return found

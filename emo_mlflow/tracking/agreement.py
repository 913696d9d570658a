"""What readers' labels say of a sweep, as a child of its run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

from emo_mlflow import __version__
from emo_mlflow.errors import UserError, reason_of
from emo_mlflow.report.blocks import escape
from emo_mlflow.tracking.lifecycle import KIND, VERSION, end_run
from emo_mlflow.tracking.store import shown
from emo_mlflow.tracking.values import Values, log_values


def log_agreement(
    sweep: Run, folder: Path, params: Mapping[str, Any], metrics: Values, lines: Sequence[str], tracking_uri: str | None
) -> str:
    """Logs files, params and metrics as a new child of a sweep's run; returns its id. The sweep's own run stays as it is.

    Raises:
        UserError: if the store does not take it.
    """
    client = MlflowClient(tracking_uri)
    tags = {MLFLOW_PARENT_RUN_ID: sweep.info.run_id, KIND: "agreement", VERSION: __version__, "emo.model": sweep.data.tags.get("emo.model", "")}
    try:
        run_id = str(client.create_run(sweep.info.experiment_id, tags=tags, run_name=f"labels of {params['labels.readers']}").info.run_id)
        log_values(client, run_id, params=params, metrics=metrics)
        client.log_artifacts(run_id, str(folder))
        client.set_tag(run_id, MLFLOW_RUN_NOTE, "\n\n".join(escape(line) for line in lines if line))
        end_run(client, run_id)
    except MlflowException as error:
        raise UserError(f"{shown(client.tracking_uri)} does not take the labels' run: {reason_of(error)}") from None
    return run_id

"""Vectors and alignments as MLflow runs: parameters to settings to work, and everything that it made into the run."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME, MLFLOW_RUN_NOTE

from emo_mlflow.align import run_align
from emo_mlflow.aligner import AlignSettings
from emo_mlflow.config import ALIGN, VECTORS
from emo_mlflow.errors import UserError
from emo_mlflow.outcome import Outcome
from emo_mlflow.parameters import Parameter, read
from emo_mlflow.report.sweep import escape
from emo_mlflow.run_context import check_store, mark_failed, run_context
from emo_mlflow.vectors import VectorSettings, run_vectors

Say = Callable[[str], None]

METRICS_A_BATCH, PARAMS_A_BATCH, PARAM_LENGTH = 1000, 100, 6000  # MLflow's limits


@dataclass(frozen=True)
class Task:
    """An entry point whose work leaves files and figures rather than completions.

    Attributes:
        kind: the tag emo.kind of its run.
        model: the parameter that the run is found by, as tag emo.model.
    """

    kind: str
    model: str
    parameters: Mapping[str, Parameter]
    settings: Callable[..., Any]
    work: Callable[[Any, Path], Outcome]


TASKS = {
    "vectors": Task("vectors", "model", VECTORS, VectorSettings, run_vectors),
    "align": Task("alignment", "model_b", ALIGN, AlignSettings, run_align),
}


def run_task(name: str, given: Mapping[str, str | None], tracking_uri: str | None, experiment: str | None, say: Say) -> str:
    """Does an entry point's work and logs it as one run, whose id it returns.

    Raises:
        UserError: for anything that the user can mend; the run that `mlflow run` made, if any, says what it was.
    """
    task = TASKS[name]
    try:
        settings = task.settings(**read(task.parameters, given))
        check_store(tracking_uri)
    except UserError as error:
        mark_failed(str(error), tracking_uri)
        raise
    client = MlflowClient(tracking_uri)
    tags = {"emo.model": str(getattr(settings, task.model))}
    with (
        run_context(client, task.kind, f"{name} {tags['emo.model']}", tags=tags, experiment=experiment) as run_id,
        tempfile.TemporaryDirectory() as folder,
    ):
        say(f"Run        {run_id}")
        outcome = task.work(settings, Path(folder))
        _log(client, run_id, outcome, Path(folder))
    for line in outcome.lines:
        say(line)
    say(f"Artifacts  {client.get_run(run_id).info.artifact_uri}")
    return run_id


def _log(client: MlflowClient, run_id: str, outcome: Outcome, folder: Path) -> None:
    """Settings as params, figures as metrics whose step is the layer, every file, and the answer as the run's description."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))["config"]
    texts = {f"config.{name}": ",".join(map(str, value)) if isinstance(value, list) else str(value) for name, value in config.items()}
    params = [Param(name, text[:PARAM_LENGTH]) for name, text in texts.items()]
    now = int(time.time() * 1000)
    metrics = [Metric(name, value, now, step) for name, value, step in outcome.metrics if math.isfinite(value)]
    for i in range(0, len(params), PARAMS_A_BATCH):
        client.log_batch(run_id, params=params[i : i + PARAMS_A_BATCH])
    for i in range(0, len(metrics), METRICS_A_BATCH):
        client.log_batch(run_id, metrics=metrics[i : i + METRICS_A_BATCH])
    client.log_artifacts(run_id, str(folder))
    client.set_tag(run_id, MLFLOW_RUN_NAME, outcome.name)
    client.set_tag(run_id, MLFLOW_RUN_NOTE, "\n\n".join(escape(line) for line in outcome.lines if line))

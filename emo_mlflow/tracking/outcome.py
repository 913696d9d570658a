"""What `vectors` and `align` hand back, and how it is logged: files in a folder, and what a run's page shows of them."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME, MLFLOW_RUN_NOTE

from emo_mlflow import __version__
from emo_mlflow.report.blocks import escape
from emo_mlflow.tracking.lifecycle import run_context, run_name
from emo_mlflow.tracking.values import Values, log_values, model_params
from emo_mlflow.types import Say

VERSIONED = ("torch", "transformers", "numpy", "scipy")


@dataclass(frozen=True, eq=False)
class Outcome:
    """A finished entry point; its files, config.json among them (`write_config`), are in the folder that it was given.

    Attributes:
        kind: `vectors`, `alignment` or `heads`, the tag emo.kind of its run.
        name: of its run.
        facts: what was found rather than chosen; config.json has them beside the settings.
        metrics: (name, value, step), the step being the layer where there is one.
        lines: the answer for the terminal.
    """

    kind: str
    name: str
    facts: Mapping[str, Any]
    metrics: Values
    lines: tuple[str, ...]


def write_config(folder: Path, settings: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Writes config.json: the settings as resolved, what was found, and the versions that it was found with."""
    versions = {name: version(name) for name in VERSIONED}
    versions |= {"emo_mlflow": __version__, "python": sys.version.split()[0]}
    content = {"config": settings, **facts, "versions": versions}
    (folder / "config.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


def run_and_log(
    work: Callable[[Path], Outcome], kind: str, name: str, model: str, tracking_uri: str | None, experiment: str | None, say: Say
) -> str:
    """Does the work in a folder of its own and logs what it left as one run, whose id it returns.

    Args:
        kind: the tag emo.kind of the run.
        model: the tag emo.model, by which the run is found.
    """
    client = MlflowClient(tracking_uri)
    with (
        run_context(client, kind, run_name(model, name), tags={"emo.model": model}, experiment=experiment) as run_id,
        tempfile.TemporaryDirectory() as folder,
    ):
        say(f"Run        {run_id}")
        outcome = work(Path(folder))
        _log(client, run_id, outcome, Path(folder))
    for line in outcome.lines:
        say(line)
    say(f"Artifacts  {client.get_run(run_id).info.artifact_uri}")
    return run_id


def _log(client: MlflowClient, run_id: str, outcome: Outcome, folder: Path) -> None:
    """Settings as params, figures as metrics whose step is the layer, every file, and the answer as the run's description."""
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    params = {f"config.{name}": value for name, value in content["config"].items()} | model_params(content)
    log_values(client, run_id, params=params, metrics=outcome.metrics)
    client.log_artifacts(run_id, str(folder))
    client.set_tag(run_id, MLFLOW_RUN_NAME, outcome.name)
    client.set_tag(run_id, MLFLOW_RUN_NOTE, "\n\n".join(escape(line) for line in outcome.lines if line))

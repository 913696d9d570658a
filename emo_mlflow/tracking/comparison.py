"""A comparison's run in MLflow: opened before anything is read, given the report and the numbers, linked to its sweeps."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag

from emo_mlflow.comparison import Comparison
from emo_mlflow.tracking.lifecycle import experiment_name, run_context
from emo_mlflow.tracking.values import log_values


@dataclass(frozen=True)
class ComparisonRun:
    """The open run of a comparison."""

    client: MlflowClient
    run_id: str

    @classmethod
    @contextmanager
    def open(cls, tracking_uri: str | None, experiment: str | None) -> Iterator[ComparisonRun]:
        """Opens the run, and ends it when the block is left."""
        client = MlflowClient(tracking_uri)
        with run_context(client, "comparison", "comparison", experiment=experiment) as run_id:
            yield cls(client, run_id)

    @property
    def artifact_uri(self) -> str:
        """Where the report is."""
        return str(self.client.get_run(self.run_id).info.artifact_uri)

    def experiment_name(self, name: str | None) -> str:
        """The experiment asked for, or the active one."""
        return experiment_name(self.client, name)

    def log(self, comparison: Comparison, folder: Path, settings: Mapping[str, object]) -> None:
        """Logs the files of a folder, settings as params, numbers as metrics; tags and inputs link the sweeps."""
        self.client.log_artifacts(self.run_id, str(folder))
        params = {f"compared.{name}": value for name, value in {**settings, "phase": comparison.phase}.items()}
        metrics = [(name, value, 0) for name, value in comparison.metrics.items()]
        log_values(self.client, self.run_id, params=params, metrics=metrics)
        self.client.set_tag(self.run_id, "emo.sweeps", ",".join(source.run_id for source in comparison.sources))
        inputs = [
            DatasetInput(
                Dataset(
                    name=source.label[:500],
                    digest=source.run_id[:32],
                    source_type="mlflow_run",
                    source=json.dumps({"run_id": source.run_id, "uri": f"runs:/{source.run_id}"}),
                ),
                [InputTag("mlflow.data.context", "sweep")],
            )
            for source in comparison.sources
        ]
        self.client.log_inputs(self.run_id, inputs)

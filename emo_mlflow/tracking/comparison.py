"""A comparison's run in MLflow: opened before anything is read, given the report and the numbers, linked to its sweeps."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from emo_mlflow.comparison import Comparison
from emo_mlflow.comparison.rows import records
from emo_mlflow.report.across_models import across_note, standing
from emo_mlflow.studying.across_models import AcrossModels
from emo_mlflow.tracking.answers import log_answers
from emo_mlflow.tracking.lifecycle import experiment_name, run_context
from emo_mlflow.tracking.study import STUDY
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
        self._link("sweep", [(source.label, source.run_id) for source in comparison.sources])

    def log_studies(self, found: AcrossModels, folder: Path) -> None:
        """The same of studies; the description is what holds, and each emotion's standing over the models a tag."""
        self.client.log_artifacts(self.run_id, str(folder))
        metrics = [(name, value, 0) for name, value in found.metrics.items()]
        log_values(self.client, self.run_id, params={"compared.phase": STUDY}, metrics=metrics)
        verdicts = {row["emotion"]: standing(row, len(found.studies)) for row in records(found.tables["together"])}
        log_values(self.client, self.run_id, tags={f"emo.verdict.{emotion}": verdict for emotion, verdict in verdicts.items()})
        log_answers(self.client, self.run_id, verdicts)
        self.client.set_tag(self.run_id, MLFLOW_RUN_NOTE, across_note(found))
        self._link(STUDY, [(study.model, study.run_id) for study in found.studies])

    def _link(self, kind: str, compared: Sequence[tuple[str, str]]) -> None:
        """Tags and inputs from (label, run id) of each sweep or study."""
        self.client.set_tag(self.run_id, {"sweep": "emo.sweeps", STUDY: "emo.studies"}[kind], ",".join(run_id for _, run_id in compared))
        inputs = [
            DatasetInput(
                Dataset(
                    name=label[:500],
                    digest=run_id[:32],
                    source_type="mlflow_run",
                    source=json.dumps({"run_id": run_id, "uri": f"runs:/{run_id}"}),
                ),
                [InputTag("mlflow.data.context", kind)],
            )
            for label, run_id in compared
        ]
        self.client.log_inputs(self.run_id, inputs)

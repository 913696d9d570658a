"""A study's run in MLflow: the design before the first steered text, the answer at the end, the texts as a child."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

from emo_mlflow.report.study import note, words_for_table, write_study_report
from emo_mlflow.studying.finished import StudyResult
from emo_mlflow.studying.protocol import Design
from emo_mlflow.studying.verdicts import verdict_metrics
from emo_mlflow.tracking.answers import log_answers
from emo_mlflow.tracking.lifecycle import run_context, run_name
from emo_mlflow.tracking.values import log_values, model_params

STUDY = "study"
DESIGN_ID, CHANGED = "emo.design", "emo.design_changed"


@dataclass(frozen=True)
class StudyRun:
    """The open run of a study."""

    client: MlflowClient
    run_id: str

    @classmethod
    @contextmanager
    def open(
        cls, model: str, tracking_uri: str | None, experiment: str | None, run_id: str | None = None
    ) -> Iterator[StudyRun]:
        """Opens the run, or goes on with one, and ends it when the block is left."""
        client = MlflowClient(tracking_uri)
        with run_context(
            client, STUDY, run_name(model, STUDY), tags={"emo.model": model}, experiment=experiment, run_id=run_id
        ) as opened:
            yield cls(client, opened)

    @property
    def artifact_uri(self) -> str:
        """Where the report is."""
        return str(self.client.get_run(self.run_id).info.artifact_uri)

    def fix(self, design: Design, settings: Mapping[str, Any]) -> bool:
        """Logs the design, before the first steered text; says whether the run had another one before."""
        data = self.client.get_run(self.run_id).data
        before = data.tags.get(DESIGN_ID)
        changed = before is not None and before != design.design_id
        new = {f"config.{name}": text for name, text in settings.items() if f"config.{name}" not in data.params}
        log_values(self.client, self.run_id, params=new)  # what a run was begun with stays: params do not change
        self.client.set_tag(self.run_id, DESIGN_ID, design.design_id)
        if changed:
            self.client.set_tag(self.run_id, CHANGED, f"from {before}")
        self.client.log_text(self.run_id, json.dumps(design.as_json(), indent=1), "design.json")
        return changed

    def log(self, result: StudyResult, folder: Path, settings: Mapping[str, Any]) -> None:
        """Logs the answer: tags and metrics by emotion, tables, report; the description is the answer in sentences."""
        content = {"config": dict(settings), **result.facts}
        (folder / "config.json").write_text(json.dumps(content, indent=1, default=str), encoding="utf-8")
        for name in ("verdicts", "damage", "others", "conditions", "completions"):
            getattr(result, name).to_parquet(folder / f"{name}.parquet", index=False)
        write_study_report(result, folder)
        self.client.log_artifacts(self.run_id, str(folder))
        metrics = [(name, value, 0) for name, value in {**verdict_metrics(result.answers), **result.metrics}.items()]
        tags = {f"emo.verdict.{answer.emotion}": answer.verdict for answer in result.answers}
        log_values(self.client, self.run_id, params=model_params(result.facts), metrics=metrics, tags=tags)
        log_answers(self.client, self.run_id, {answer.emotion: words_for_table(answer) for answer in result.answers})
        self.client.set_tag(self.run_id, MLFLOW_RUN_NOTE, note(result))
        self._log_children(result)

    def _log_children(self, result: StudyResult) -> None:
        """A child per emotion: its effect, its p by control, and the random directions' effects as steps."""
        for answer in result.answers:
            tags = {MLFLOW_PARENT_RUN_ID: self.run_id, "emo.kind": "verdict", "emo.verdict": answer.verdict}
            run = self.client.create_run(
                self.client.get_run(self.run_id).info.experiment_id, tags=tags, run_name=f"{answer.emotion}: {answer.verdict}"
            )
            rows = result.verdicts[result.verdicts["emotion"] == answer.emotion].to_dict("records")
            metrics = [("effect", answer.effect.mean, 0), ("low", answer.effect.low, 0), ("high", answer.effect.high, 0)]
            metrics += [("p", answer.p, 0), ("p_baseline", answer.p_baseline, 0), ("broken", answer.broken, 0)]
            metrics += [(f"p.{str(row['control']).replace(': ', '.')}", float(row["p"]), 0) for row in rows]
            for (emotion, control), values in result.draws.items():
                if emotion == answer.emotion:
                    metrics += [(f"random.{control}", float(value), draw) for draw, value in enumerate(values)]
            place = answer.place
            params = {"emotion": answer.emotion, "layer": ",".join(map(str, place.layers)), "alpha": f"{place.alpha:g}"}
            params |= {"alpha_unit": place.alpha_unit, "metric": answer.metric, "model": result.model}
            log_values(self.client, run.info.run_id, params=params, metrics=metrics)
            self.client.set_terminated(run.info.run_id, "FINISHED")

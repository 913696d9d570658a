"""The only writer to MLflow: one parent run per sweep, a child per condition, and the artifacts that the readers expect."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS, MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

from emo_mlflow.directions import save_directions
from emo_mlflow.errors import UserError
from emo_mlflow.report.sweep import verdicts, write_report
from emo_mlflow.results import SweepResult
from emo_mlflow.run_context import KIND, end_run, open_run
from emo_mlflow.types import SweepConfig

CONDITION = "emo.condition_id"
CHILD_LIMIT = 200
BATCH = 1000
PROGRESS_SECONDS = 5.0
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines per child run otherwise
SETTING = ("emotion", "layer", "alpha", "patch_window")
SWEEP_PARAMS = (
    "model",
    "profile",
    "alpha_unit",
    "alpha_schedule",
    "site",
    "operation",
    "prepend_bos",
    "sequence_length",
    "max_samples",
    "samples_per_prompt",
    "temperature",
    "num_random",
    "dtype",
    "seed",
)


def effect_name(emotion: str, metric: str, alpha: float, window: int | None, n_alphas: int, n_windows: int) -> str:
    """The parent's metric that holds an effect at step = layer; strength and window are named only where several were swept.

    So two models' parents, selected together in the UI, overlay their layer profiles.
    """
    parts = ["effect", emotion]
    if n_alphas > 1:
        parts.append(f"alpha_{alpha:g}")
    if n_windows > 1 and window is not None:
        parts.append(f"window_{window}")
    return ".".join([*parts, metric])


def fetch_directions(source: str, tracking_uri: str | None) -> Path:
    """The safetensors file of `directions=RUN_ID_OR_FILE`.

    Raises:
        UserError: if there is neither such a file nor such a run.
    """
    if Path(source).is_file():
        return Path(source)
    try:
        return Path(
            download_artifacts(run_id=source, artifact_path="directions.safetensors", tracking_uri=tracking_uri)
        )
    except (MlflowException, OSError) as error:
        raise UserError(
            f"directions={source!r} is neither a file nor a run that has directions.safetensors ({str(error).splitlines()[0]})"
        ) from None


class SweepRun:
    """A parent run, from its opening to its end: FINISHED, FAILED with the reason in the tag `emo.failure`, or KILLED."""

    def __init__(self, client: MlflowClient, run_id: str, config: SweepConfig) -> None:
        self.client = client
        self.run_id = run_id
        self.config = config
        self._last_progress = 0.0

    @classmethod
    def open(
        cls,
        config: SweepConfig,
        *,
        tracking_uri: str | None = None,
        experiment: str | None = None,
        run_id: str | None = None,
    ) -> SweepRun:
        """Opens the run to resume, or the one that `mlflow run` made, or a new one."""
        client = MlflowClient(tracking_uri)
        tags = {"emo.model": config.model, "emo.profile": config.profile}
        windows = f" {','.join(map(str, config.patch_window))}" if config.scope == "window" else ""
        name = f"sweep {Path(config.model).name}, {config.scope}{windows}"
        run_id = open_run(client, "sweep", name, tags=tags, experiment=experiment, run_id=run_id)
        return cls(client, run_id, config)

    def __enter__(self) -> SweepRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end_run(self.client, self.run_id, error)

    def progress(self, done: int, total: int, figures: Mapping[str, float]) -> None:
        """Logs how far the sweep is, now and then; a store that is busy does not stop the sweep."""
        now = time.monotonic()
        if now - self._last_progress < PROGRESS_SECONDS and done < total:
            return
        self._last_progress = now
        try:
            self._log_metrics(
                self.run_id, {"progress.cells": float(done), **{f"progress.{k}": v for k, v in figures.items()}}, done
            )
        except MlflowException:
            return

    def log(self, result: SweepResult) -> None:
        """Logs a finished sweep: settings, effects by layer, children, artifacts."""
        settings = {f"config.{k}": _text(v) for k, v in asdict(result.config).items()}
        self.client.log_batch(self.run_id, params=[Param(k, v[:6000]) for k, v in settings.items()])
        self._log_metrics(self.run_id, result.metrics, 0)
        effects = result.effects.merge(result.conditions, on="condition_id")
        self._log_all(self.run_id, list(parent_metrics(result.config, effects)))
        self._log_children(result, effects)
        with tempfile.TemporaryDirectory() as folder:
            write_artifacts(result, Path(folder))
            self.client.log_artifacts(self.run_id, folder)
        self.client.set_tag(self.run_id, MLFLOW_RUN_NOTE, "\n".join(verdicts(result)))
        self.client.set_tag(
            self.run_id, MLFLOW_LOGGED_ARTIFACTS, json.dumps([{"path": "examples.json", "type": "table"}])
        )

    def hints(self) -> list[str]:
        """Where to look next."""
        uri = self.client.tracking_uri
        show = f"open {uri}" if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"
        return [
            f"Artifacts  {self.client.get_run(self.run_id).info.artifact_uri}",
            f"Compare    {show}",
            f"Read       emo_mlflow.load_sweep({self.run_id!r})",
        ]

    def _log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int) -> None:
        self._log_all(run_id, [(name, value, step) for name, value in metrics.items()])

    def _log_all(self, run_id: str, values: list[tuple[str, float, int]]) -> None:
        now = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now, step) for name, value, step in values if np.isfinite(value)]
        for i in range(0, len(metrics), BATCH):
            self.client.log_batch(run_id, metrics=metrics[i : i + BATCH])

    def _log_children(self, result: SweepResult, effects: pd.DataFrame) -> None:
        """A child per emotion condition that has none yet, so that logging again after a failure adds only what is missing."""
        wanted = result.conditions[result.conditions["kind"] == "emotion"]
        if result.config.child_runs == "none":
            return
        if result.config.child_runs == "auto" and len(wanted) > CHILD_LIMIT:
            reason = f"none: {len(wanted)} conditions are more than {CHILD_LIMIT}; child_runs=all logs them"
            self.client.set_tag(self.run_id, "emo.children", reason)
            return
        experiment_id = self.client.get_run(self.run_id).info.experiment_id
        there = self._children(experiment_id)
        by_condition = dict(list(effects.groupby("condition_id")))
        random_effects = effects[effects["kind"] == "random"]
        randoms = {_setting(rows.iloc[0]): rows for _, rows in random_effects.groupby(list(SETTING), dropna=False)}
        shared = {name: _text(getattr(result.config, name)) for name in SWEEP_PARAMS}
        for condition in wanted.to_dict("records"):
            if condition["condition_id"] in there:
                continue
            name = child_name(condition, result.conditions["patch_window"].nunique())
            tags = {MLFLOW_PARENT_RUN_ID: self.run_id, KIND: "condition", CONDITION: condition["condition_id"]}
            child = self.client.create_run(experiment_id, tags={**resolve_tags(), **tags}, run_name=name).info.run_id
            params = shared | {key: _text(condition[key]) for key in (*SETTING, "scope") if not pd.isna(condition[key])}
            self.client.log_batch(child, params=[Param(key, value) for key, value in params.items()])
            values = list(child_metrics(by_condition[condition["condition_id"]], randoms.get(_setting(condition))))
            self._log_all(child, [*values, ("n_patched", float(condition["n_patched"]), 0)])
            self.client.set_terminated(child, "FINISHED")

    def _children(self, experiment_id: str) -> set[str | None]:
        """The condition ids of the finished children."""
        found: set[str | None] = set()
        token: str | None = None
        while True:
            page = self.client.search_runs(
                [experiment_id], f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{self.run_id}'", max_results=1000, page_token=token
            )
            found |= {child.data.tags.get(CONDITION) for child in page if child.info.status == "FINISHED"}
            token = page.token
            if not token:
                return found


def child_name(condition: Mapping[Any, Any], n_windows: int) -> str:
    """As short as the column of MLflow's table of runs, which cuts off what is longer: `gratitude L12 α2`."""
    name = f"{condition['emotion']} L{condition['layer']} \N{GREEK SMALL LETTER ALPHA}{condition['alpha']:g}"
    return f"{name} W{condition['patch_window']}" if n_windows > 1 else name


def _setting(condition: Mapping[Any, Any] | pd.Series) -> tuple[Any, ...]:
    """What a condition shares with its random controls."""
    return tuple(None if pd.isna(condition[name]) else condition[name] for name in SETTING)


def parent_metrics(config: SweepConfig, effects: pd.DataFrame) -> Iterator[tuple[str, float, int]]:
    """(name, mean difference, layer) for every emotion condition and metric."""
    n_windows = effects["patch_window"].nunique()
    for row in effects[effects["kind"] == "emotion"].to_dict("records"):
        window = None if pd.isna(row["patch_window"]) else int(row["patch_window"])
        name = effect_name(row["emotion"], row["metric"], row["alpha"], window, len(config.alphas), n_windows)
        yield name, row["mean_diff"], int(row["layer"])


def child_metrics(effects: pd.DataFrame, randoms: pd.DataFrame | None) -> Iterator[tuple[str, float, int]]:
    """A condition's metrics: `mean.*`, `diff.*` and `d_z.*`, and its random controls' differences as steps of `random.*`."""
    for row in effects.to_dict("records"):
        yield f"mean.{row['metric']}", row["mean_patched"], 0
        yield f"diff.{row['metric']}", row["mean_diff"], 0
        yield f"d_z.{row['metric']}", row["d_z"], 0
    for row in [] if randoms is None else randoms.to_dict("records"):
        yield f"random.{row['metric']}", row["mean_diff"], int(row["draw"])


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def write_artifacts(result: SweepResult, folder: Path) -> None:
    """Writes the artifacts of a sweep into a folder."""
    config = {"config": asdict(result.config), **result.facts}
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    for name in ("prompts", "fit_prompts", "conditions", "completions", "scores", "effects"):
        getattr(result, name).to_parquet(folder / f"{name}.parquet", index=False)
    metadata = {name: str(result.facts[name]) for name in ("fit_hash", "model_fingerprint", "residual_norms")}
    save_directions(folder / "directions.safetensors", result.directions, metadata)
    write_report(result, folder)

"""Reading sweeps back from MLflow: tables as DataFrames, downloaded when they are first looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import pandas as pd
import pyarrow.dataset as ds
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from emo_mlflow.alignment.schemas import OVERLAP
from emo_mlflow.common.columns import scan_parquet
from emo_mlflow.directions.files import load_directions
from emo_mlflow.errors import UserError, reason_of
from emo_mlflow.sweeping.files import read_config_file, read_table, with_settings
from emo_mlflow.sweeping.schemas import TABLES
from emo_mlflow.tracking.lifecycle import KIND, resume_command
from emo_mlflow.tracking.logged_run import LoggedRun
from emo_mlflow.tracking.store import fetch
from emo_mlflow.types import Direction

PHASES = {"residual": "sweep", "head": "heads", "study": "study"}  # what can be compared, and the kind of run that each leaves
SWEEPS = (PHASES["residual"], PHASES["head"])


class Sweep(LoggedRun):
    """A finished sweep. Each table is fetched on first use and kept."""

    def read(self, name: str) -> pd.DataFrame:
        """A table, fetched and checked, and not kept."""
        return read_table(self._fetch(f"{name}.parquet"), name, self.run_id)

    @cached_property
    def _config_file(self) -> dict[str, Any]:
        return read_config_file(self._fetch("config.json"), self.run_id)

    @property
    def config(self) -> Mapping[str, Any]:
        """The settings, by the names of SweepConfig."""
        return dict(self._config_file["config"])

    @property
    def facts(self) -> Mapping[str, Any]:
        """What was found rather than chosen: versions, device, fingerprints."""
        return {name: value for name, value in self._config_file.items() if name != "config"}

    def scan(self, name: str) -> ds.Dataset:
        """A table that is too large for memory, read where it is looked at: `scan("scores").to_table(columns=[...], filter=...)`, or by batches.

        Raises:
            UserError: for a name that no table of a sweep has, or a file that is not as the table is declared.
        """
        if name not in TABLES:
            raise UserError(f"a sweep has no table {name!r}: there are {', '.join(TABLES)}")
        return scan_parquet(TABLES[name], self._fetch(f"{name}.parquet"), f"{name}.parquet of run {self.run_id}")

    @cached_property
    def prompts(self) -> pd.DataFrame:
        """prompt_id, emotion, text."""
        return self.read("prompts")

    @cached_property
    def conditions(self) -> pd.DataFrame:
        """A row per condition."""
        return with_settings(self.read("conditions"), self.config)

    @cached_property
    def completions(self) -> pd.DataFrame:
        """A row per cell: the text and its fluency."""
        return self.read("completions")

    @cached_property
    def scores(self) -> pd.DataFrame:
        """A row per cell, a float32 column per metric `scorer.label`."""
        return self.read("scores")

    @cached_property
    def effects(self) -> pd.DataFrame:
        """A row per condition and metric."""
        return self.read("effects")

    @cached_property
    def directions(self) -> dict[str, Direction]:
        """What was injected, by emotion."""
        return load_directions(self._fetch("directions.safetensors"))[0]


def load_sweep(run_id: str, tracking_uri: str | None = None) -> Sweep:
    """The sweep that a run holds.

    Raises:
        UserError: if the run does not exist, was deleted, is no sweep, or has not finished; the message names the run and what it is.
    """
    try:
        run = MlflowClient(tracking_uri).get_run(run_id)
    except MlflowException as error:
        raise UserError(f"there is no run {run_id!r} in this store: {reason_of(error)}") from None
    kind = run.data.tags.get(KIND)
    if kind not in SWEEPS:
        raise UserError(f"run {run_id} ({run.info.run_name}) is no sweep but {kind or 'a run of something else'}")
    if run.info.lifecycle_stage == "deleted":
        raise UserError(
            f"run {run_id} ({run.info.run_name}) was deleted: restore it with `mlflow runs restore --run-id {run_id}`"
        )
    if run.info.status != "FINISHED":
        raise UserError(
            f"run {run_id} ({run.info.run_name}) is {run.info.status}: go on with `{resume_command(kind, run_id)}`"
        )
    return Sweep(run, tracking_uri)


def find_sweeps(
    experiment: str | None = None,
    model: str | None = None,
    filter: str | None = None,
    tracking_uri: str | None = None,
    finished: bool = True,
    phase: str = "residual",
) -> pd.DataFrame:
    """Sweeps, newest first: run_id, model, profile, start_time, status, experiment_id.

    Args:
        phase: `residual` for sweeps of directions, `head` for sweeps over heads, `study` for studies.
        experiment: name; None for all experiments.
        filter: a further MLflow filter string, such as `params.config.scope = 'window'`.
    """
    client = MlflowClient(tracking_uri)
    if experiment is None:
        ids = [found.experiment_id for found in client.search_experiments()]
    else:
        named = client.get_experiment_by_name(experiment)
        if named is None:
            names = ", ".join(found.name for found in client.search_experiments())
            raise UserError(f"there is no experiment {experiment!r}; there are {names}")
        ids = [named.experiment_id]
    parts = [f"tags.`{KIND}` = '{PHASES[phase]}'"]
    parts += [f"tags.`emo.model` = '{model}'"] if model else []
    parts += ["attributes.status = 'FINISHED'"] if finished else []
    parts += [filter] if filter else []
    rows: list[dict[str, Any]] = []
    token: str | None = None
    while True:
        try:
            page = client.search_runs(
                ids, " and ".join(parts), order_by=["attributes.start_time DESC"], page_token=token
            )
        except MlflowException as error:
            raise UserError(f"cannot search with filter {filter!r}: {reason_of(error)}") from None
        rows += [_summary(run) for run in page]
        token = page.token
        if not token:
            return pd.DataFrame(rows, columns=list(_COLUMNS))


_COLUMNS = ("run_id", "model", "profile", "start_time", "status", "experiment_id")


def _summary(run: Run) -> dict[str, Any]:
    tags = run.data.tags
    start = pd.to_datetime(run.info.start_time, unit="ms", utc=True)
    values = (
        run.info.run_id,
        tags.get("emo.model"),
        tags.get("emo.profile"),
        start,
        run.info.status,
        run.info.experiment_id,
    )
    return dict(zip(_COLUMNS, values, strict=True))


def load_compared(ids: Sequence[str], tracking_uri: str | None) -> tuple[list[Sweep], list[pd.DataFrame]]:
    """The sweeps among the runs, and the overlap tables of the alignments.

    Raises:
        UserError: as `load_sweep`, and for an overlap table that is not one.
    """
    client = MlflowClient(tracking_uri)
    sweeps, alignments = [], []
    for run_id in ids:
        if _is_alignment(client, run_id):
            name = "overlap.parquet"
            alignments.append(OVERLAP.read(fetch(run_id, name, tracking_uri), f"{name} of run {run_id}"))
        else:
            sweeps.append(load_sweep(run_id, tracking_uri))
    return sweeps, alignments


def _is_alignment(client: MlflowClient, run_id: str) -> bool:
    try:
        return bool(client.get_run(run_id).data.tags.get(KIND) == "alignment")
    except MlflowException:
        return False  # load_sweep says what is wrong

"""A finished run as a person at a Python prompt sees it: what it found, in sentences, and its tables and figures, fetched when they are asked for."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from emo_mlflow.common.columns import read_parquet
from emo_mlflow.errors import UserError, reason_of
from emo_mlflow.report.blocks import BETWEEN_LISTS, plain
from emo_mlflow.tracking.lifecycle import KIND
from emo_mlflow.tracking.store import fetch

FIGURES = "figures"


@dataclass(frozen=True)
class FigureFile:
    """A figure as the run has it: a notebook shows it; `path` is the file."""

    path: Path

    def __repr__(self) -> str:
        return f"FigureFile({self.path.name})"

    def _repr_png_(self) -> bytes:
        return self.path.read_bytes()


class LoggedRun:
    """A run of `sweep`, `heads`, `study`, `vectors` or `align` in MLflow."""

    def __init__(self, run: Run, tracking_uri: str | None) -> None:
        self.run = run
        self.run_id: str = run.info.run_id
        self.status: str = run.info.status
        self._tracking_uri = tracking_uri
        self._local: dict[str, Path] = {}

    def __repr__(self) -> str:
        head = f"{self.kind} {self.run.data.tags.get('emo.model')}, run {self.run_id}, {self.status}"
        return "\n".join([head, *(f"- {sentence}" for sentence in self.answer)])

    def _repr_html_(self) -> str:
        """The answer, and what else there is to look at."""
        title = f"{self.kind} {self.run.data.tags.get('emo.model')}"
        answer = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in self.answer)
        there = {"tables": self.tables, "figures": self.figures}
        kept = " &nbsp; ".join(f"{what}: {html.escape(', '.join(names))}" for what, names in there.items())
        return f"<b>{html.escape(title)}</b> <code>{self.run_id}</code><ul>{answer}</ul><small>{kept}</small>"

    @property
    def kind(self) -> str:
        """`sweep`, `heads`, `study`, `vectors` or `alignment`."""
        return str(self.run.data.tags.get(KIND))

    @property
    def seconds(self) -> float:
        """From the run's start to its end; NaN where it has none."""
        info = self.run.info
        return float("nan") if info.end_time is None else (info.end_time - info.start_time) / 1000

    @property
    def answer(self) -> tuple[str, ...]:
        """What it found, in sentences, as in the description on the run's page."""
        sentences = self.run.data.tags.get(MLFLOW_RUN_NOTE, "").split(BETWEEN_LISTS)[-1]
        return tuple(plain(line) for line in sentences.splitlines() if line.strip())

    @property
    def tables(self) -> tuple[str, ...]:
        """Names that `table` takes."""
        return tuple(sorted({Path(name).stem for name in self._files if name.endswith((".parquet", ".csv"))}))

    @property
    def figures(self) -> tuple[str, ...]:
        """Names that `figure` takes."""
        return tuple(sorted(Path(name).stem for name in self._files if name.startswith(f"{FIGURES}/") and name.endswith(".png")))

    def table(self, name: str) -> pd.DataFrame:
        """A table of the run.

        Raises:
            UserError: if it has none of this name, or the file cannot be read.
        """
        self._check_name("table", name, self.tables)
        file = f"{name}.parquet" if f"{name}.parquet" in self._files else f"{name}.csv"
        try:
            return read_parquet(self._fetch(file)) if file.endswith("parquet") else pd.read_csv(self._fetch(file))
        except UserError:
            raise
        except Exception as error:  # of Arrow or pandas, over a file that is damaged
            raise UserError(f"{file} of run {self.run_id} cannot be read: {reason_of(error)}") from None

    def figure(self, name: str) -> FigureFile:
        """A figure of the run.

        Raises:
            UserError: if it has none of this name.
        """
        self._check_name("figure", name, self.figures)
        return FigureFile(self._fetch(f"{FIGURES}/{name}.png"))

    def _check_name(self, what: str, name: str, there: Sequence[str]) -> None:
        if name not in there:
            raise UserError(f"run {self.run_id} has no {what} {name!r}: it has {', '.join(there) or 'none'}")

    @cached_property
    def _files(self) -> frozenset[str]:
        """The artifacts at the top, and the figures."""
        client = MlflowClient(self._tracking_uri)
        try:
            found = [item for folder in (None, FIGURES) for item in client.list_artifacts(self.run_id, folder)]
        except (MlflowException, OSError) as error:
            raise UserError(f"the artifacts of run {self.run_id} cannot be listed: {reason_of(error)}") from None
        return frozenset(item.path for item in found if not item.is_dir)

    def _fetch(self, name: str) -> Path:
        """An artifact as a local file, downloaded once."""
        try:
            if name not in self._local:
                self._local[name] = fetch(self.run_id, name, self._tracking_uri)
            return self._local[name]
        except (MlflowException, OSError) as error:
            raise UserError(f"run {self.run_id} has no artifact {name}: {reason_of(error)}") from None


def logged_run(run_id: str, tracking_uri: str | None) -> LoggedRun:
    """A run that this process has just logged."""
    return LoggedRun(MlflowClient(tracking_uri).get_run(run_id), tracking_uri)

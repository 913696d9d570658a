"""A sweep's run in MLflow: opened before the work, told of its progress, and given what the sweep found."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from emo_mlflow.errors import UserError, reason_of
from emo_mlflow.settings.sweep import SweepConfig
from emo_mlflow.sweeping.results import SweepResult
from emo_mlflow.tracking.lifecycle import KIND, end_run, open_run, run_name, run_of_project
from emo_mlflow.tracking.record import Record, plan_children, read_record, sweep_params, write_record
from emo_mlflow.tracking.retries import PARTING_SECONDS, PATIENCE, Background, Retry, own_retries
from emo_mlflow.tracking.store import fetch, shown
from emo_mlflow.tracking.upload import Upload
from emo_mlflow.tracking.values import Values, milliseconds
from emo_mlflow.types import Condition, Say

PROGRESS_SECONDS = 5.0
OPENING_PATIENCE = 20.0


class NotLogged(UserError):
    """A sweep is finished and on disk, but not, or not wholly, in MLflow."""


def fetch_directions(source: str, tracking_uri: str | None) -> Path:
    """The safetensors file of `directions=RUN_ID_OR_FILE`.

    Raises:
        UserError: if there is neither such a file nor such a run.
    """
    if Path(source).is_file():
        return Path(source)
    try:
        return fetch(source, "directions.safetensors", tracking_uri)
    except (MlflowException, OSError) as error:
        raise UserError(
            f"directions={source!r} is neither a file nor a run that has directions.safetensors ({reason_of(error)})"
        ) from None


def has_run(run_id: str, tracking_uri: str | None) -> bool:
    """Whether a store has this run, and it was not deleted."""
    try:
        return bool(MlflowClient(tracking_uri).get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException:
        return False


class SweepRun:
    """A parent run, from its opening to its end: FINISHED, FAILED with the reason in the tag `emo.failure`, or KILLED.

    While the sweep computes, logging happens in a thread of its own and waits for a store that is away; the sweep never waits for it.
    """

    def __init__(self, client: MlflowClient, run: Run, fresh: bool, say: Say) -> None:
        self.client = client
        self._kind = run.data.tags.get(KIND, "")
        self.run_id: str = run.info.run_id
        self._say = say
        self._troubled = False
        self._work = Retry(on_trouble=self._trouble)
        self._artifact_uri: str = run.info.artifact_uri
        self._upload = Upload(client, run, self._work, fresh)
        self._background = Background()
        self._last_progress = 0.0
        self._newest: tuple[Values, int] | None = None

    @classmethod
    def open(
        cls,
        config: SweepConfig,
        *,
        tracking_uri: str | None = None,
        experiment: str | None = None,
        run_id: str | None = None,
        say: Say = lambda line: None,
    ) -> SweepRun:
        """Opens the run to resume, or the one that `mlflow run` made, or a new one.

        Args:
            say: told when the store stops answering, and when it answers again.

        Raises:
            UserError: if the store does not let it be opened.
        """
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines per child run otherwise
        client = MlflowClient(tracking_uri)
        tags = {"emo.model": config.model, "emo.profile": config.profile}
        name = run_name(config.model, config.kind) + (f", {config.scope}" if config.kind == "sweep" and config.scope != "generated" else "")
        opened = open_run(client, config.kind, name, tags=tags, experiment=experiment, run_id=run_id)
        return cls(client, _get_run(client, opened), run_id is None and run_of_project() is None, say)

    def __enter__(self) -> SweepRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._stop_background()
            return
        with own_retries(PARTING_SECONDS):
            self._stop_background(PARTING_SECONDS)
            if not isinstance(error, NotLogged):
                with suppress(MlflowException):  # from a store that is away, which will not take the parent's end either
                    self._upload.stop_children("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            end_run(self.client, self.run_id, error, self._kind)

    def announce(self, config: SweepConfig, conditions: Iterable[Condition]) -> None:
        """Logs the settings and makes the children, in the background."""
        children, _ = plan_children(config, conditions)
        self._background.send(lambda: self._upload.announce(sweep_params(config), children))

    def progress(self, done: int, total: int, figures: Mapping[str, float]) -> None:
        """Logs how far the sweep is, now and then, in the background."""
        now = time.monotonic()
        if now - self._last_progress < PROGRESS_SECONDS and done < total:
            return
        self._last_progress = now
        values = (("progress.cells", float(done), done), *((f"progress.{k}", v, done) for k, v in figures.items()))
        waiting = self._newest is not None
        self._newest = (values, milliseconds())
        if not waiting:
            self._background.send(self._log_progress)

    def _log_progress(self) -> None:
        newest, self._newest = self._newest, None
        if newest is not None:
            self._upload.log_progress(*newest)

    def log(self, result: SweepResult, folder: Path | None = None) -> None:
        """Logs a finished sweep and ends its run: settings, effects by layer, children, artifacts.

        Args:
            folder: where the record is written first, and stays; None for a temporary one.

        Raises:
            NotLogged: if the store stays away or refuses; `upload` logs the rest from the folder.
            UserError: if the folder cannot be written.
        """
        if folder is not None:
            self.publish(write_record(result, folder), folder)
            return
        with tempfile.TemporaryDirectory() as name:
            place = Path(name) / "record"
            self.publish(write_record(result, place), place)

    def publish(self, record: Record, folder: Path) -> None:
        """Logs what `log` left in a folder.

        Raises:
            NotLogged: if the store stays away or refuses.
        """
        self._stop_background()
        with suppress(MlflowException):
            self._log_progress()  # the last one, if it is still waiting
        self._upload.retry = Retry(PATIENCE, on_trouble=self._trouble)
        arrived = (0, len(record.children))

        def count(done: int, total: int) -> None:
            nonlocal arrived
            arrived = (done, total)

        try:
            self._upload.publish(record, folder, count)
        except (MlflowException, OSError) as error:
            raise NotLogged(
                f"the sweep is finished and kept on this machine, but {shown(self.client.tracking_uri)} did not take all of it "
                f"({arrived[0]} of {arrived[1]} children and files are there; {reason_of(error)}); "
                f"log the rest with: emo-mlflow upload {self.run_id}"
            ) from None

    def hints(self) -> list[str]:
        """Where to look next."""
        uri = shown(self.client.tracking_uri)
        show = f"mlflow ui --backend-store-uri {uri}"
        if uri.startswith("http"):
            show = f"open {uri.rstrip('/')}/#/experiments/{self._upload.experiment_id}/runs/{self.run_id}"
        return [
            f"Artifacts  {self._artifact_uri}",
            f"View       {show}",
            f"Read       emo_mlflow.load_sweep({self.run_id!r})",
        ]

    def _trouble(self, error: BaseException) -> None:
        if not self._troubled:
            self._troubled = True
            self._say(f"The tracking store {shown(self.client.tracking_uri)} fails ({reason_of(error)}); trying again meanwhile")

    def _stop_background(self, seconds: float | None = None) -> None:
        self._work.stop.set()
        self._background.stop(seconds)


def _get_run(client: MlflowClient, run_id: str) -> Run:
    try:
        return Retry(OPENING_PATIENCE)(lambda: client.get_run(run_id))
    except MlflowException as error:
        raise UserError(f"cannot open run {run_id} in {shown(client.tracking_uri)}: {reason_of(error)}") from None


def upload(folder: Path, run_id: str, tracking_uri: str | None, say: Say) -> list[str]:
    """Logs what is left of a finished sweep from its folder; returns where to look next.

    Raises:
        UserError: if there is no such run in the store, or the folder's record cannot be read.
        NotLogged: if the store stays away or refuses.
    """
    record = read_record(folder)
    client = MlflowClient(tracking_uri)
    with SweepRun(client, _get_run(client, run_id), False, say) as run:
        run.publish(record, folder)
    return run.hints()

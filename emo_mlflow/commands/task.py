"""What commands share: parameters to settings, and, for `vectors` and `align`, to work and one MLflow run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from emo_mlflow.common import progress
from emo_mlflow.errors import UserError
from emo_mlflow.settings.declared import read, table_of
from emo_mlflow.tracking.lifecycle import mark_failed
from emo_mlflow.tracking.outcome import Outcome, run_and_log
from emo_mlflow.tracking.store import check_store
from emo_mlflow.types import Say

S = TypeVar("S")


def settings_from(settings: type[S], given: Mapping[str, str | None], tracking_uri: str | None) -> S:
    """Settings from texts, once the store answers.

    Raises:
        UserError: for anything that the user can mend; the run that `mlflow run` made, if any, says what it was.
    """
    try:
        found = settings(**read(table_of(settings), given))
        check_store(tracking_uri)
    except UserError as error:
        mark_failed(str(error), tracking_uri)
        raise
    return found


@dataclass(frozen=True)
class Task(Generic[S]):
    """An entry point whose work leaves files and figures rather than completions.

    Attributes:
        kind: the tag emo.kind of its run.
        model: the parameter that the run is found by, as tag emo.model.
    """

    name: str
    kind: str
    model: str
    settings: type[S]
    work: Callable[[S, Path], Outcome]

    def run(self, given: Mapping[str, str | None], tracking_uri: str | None, experiment: str | None, say: Say) -> str:
        """Does the work and logs it as one run, whose id it returns.

        Raises:
            UserError: for anything that the user can mend; the run that `mlflow run` made, if any, says what it was.
        """
        settings = settings_from(self.settings, given, tracking_uri)
        model = str(getattr(settings, self.model))
        with progress.bars():
            return run_and_log(lambda out: self.work(settings, out), self.kind, self.name, model, tracking_uri, experiment, say)

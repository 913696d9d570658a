"""An MLflow model as a scorer: `models:/NAME/VERSION` or `models:/NAME@alias`, any pyfunc that maps a column of texts to numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from emo_mlflow.common.names import check_name, shown
from emo_mlflow.errors import UserError, reason_of
from emo_mlflow.scoring.agreement import Agreement
from emo_mlflow.types import FloatArray, digest

SCHEME = "models:/"
SHAPE = re.compile(r"models:/([^/@?#]+)(?:/(\d+)|@([\w.-]+))")
DEFAULT_COLUMN = "text"
TRIAL = ("", "I thank you.")


class LoggedModelScorer:
    """A loaded model: a `protocol.Scorer`."""

    def __init__(self, name: str, model: Any, column: str) -> None:
        self.name = name
        self._model = model
        self._column = column
        self.metrics = tuple(self._predict(TRIAL).columns)

    @property
    def fingerprint(self) -> str:
        """Of the model as it was logged: its own id, and not an alias, which may be set anew."""
        return digest(["pyfunc", self._model.metadata.model_uuid, self._column])

    @property
    def agreement(self) -> tuple[Agreement, ...]:
        """Not known before readers have labelled texts."""
        return ()

    @property
    def providers(self) -> tuple[str, ...]:
        """MLflow's flavour of the model."""
        return (str(self._model.loader_module),) if hasattr(self._model, "loader_module") else ("mlflow.pyfunc",)

    @property
    def costs(self) -> Mapping[str, float]:
        """None but the time."""
        return {}

    def score(self, texts: Sequence[str]) -> FloatArray:
        """Distinct texts -> float32 [texts, metrics].

        Raises:
            UserError: if the model fails, or gives other columns than at first.
        """
        found = self._predict(texts) if len(texts) else pd.DataFrame(columns=list(self.metrics))
        if tuple(found.columns) != self.metrics:
            raise UserError(f"the model {self.name} gave {', '.join(self.metrics)} at first and now {', '.join(found.columns)}")
        return found.to_numpy(np.float32)

    def _predict(self, texts: Sequence[str]) -> pd.DataFrame:
        try:
            given = self._model.predict(pd.DataFrame({self._column: list(texts)}))
        except Exception as error:  # whatever the model's own code raises
            raise UserError(f"the model {self.name} cannot score a column {self._column!r} of texts: {reason_of(error)}") from None
        return _numbers(self.name, given, len(texts))


def load_logged_model(uri: str) -> LoggedModelScorer:
    """Loads a registered model from MLflow's active registry. MLflow runs the code that is stored in it.

    Raises:
        UserError: if there is none of that name, it cannot be loaded, takes something else than one column of texts, or gives no numbers.
    """
    found = SHAPE.fullmatch(uri)
    if not found:
        raise UserError(f"the scorer {shown(uri)} is not of the form models:/NAME/VERSION or models:/NAME@alias")
    name = check_name(found[1], "the model's name")
    import mlflow  # here, since MLflow itself imports this package's plugins

    try:
        model = mlflow.pyfunc.load_model(uri)
    except Exception as error:  # of MLflow, of the model's own code, or of a package that it lacks
        raise UserError(f"cannot load the scorer {uri}: {reason_of(error)}") from None
    return LoggedModelScorer(name, model, _column(uri, model.metadata.get_input_schema()))


def _column(uri: str, schema: Any) -> str:
    """The one column that the model takes; DEFAULT_COLUMN where it does not say."""
    if schema is None:
        return DEFAULT_COLUMN
    inputs = list(schema.inputs)
    needed = [item for item in inputs if getattr(item, "required", True)] or inputs
    names = ", ".join(str(getattr(item, "name", None) or "without a name") for item in inputs)
    if len(needed) != 1 or getattr(getattr(needed[0], "type", None), "name", "") != "string":
        raise UserError(f"the scorer {uri} takes {names}: a scorer takes one column of texts")
    return str(needed[0].name or DEFAULT_COLUMN)


def _numbers(name: str, given: Any, n: int) -> pd.DataFrame:
    """What a model gave, as a float column per metric: `NAME.column`, or a column's own name where that is `scorer.label` already."""
    table = pd.DataFrame(given) if not isinstance(given, pd.Series) else given.to_frame(given.name or "score")
    if len(table) != n:
        raise UserError(f"the model {name} gave {len(table)} rows for {n} texts: a scorer gives one per text")
    numbers = table.apply(pd.to_numeric, errors="coerce")
    if not len(table.columns) or (numbers.isna() & table.notna()).any(axis=None):
        raise UserError(f"the model {name} gives something other than numbers: {shown(table.head(1).to_dict('records'))}")
    labels = ["score" if table.shape[1] == 1 and column == 0 else str(column) for column in table.columns]
    metrics = [label if "." in label.strip(".") else f"{name}.{label}" for label in labels]
    for metric in metrics:
        check_name(metric, f"the model {name}: column")
    return numbers.astype(float).set_axis(metrics, axis="columns")

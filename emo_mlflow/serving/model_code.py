"""The code of a logged steered model, which MLflow runs when it loads the model (a model from code: nothing is pickled)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel, PythonModelContext

from emo_mlflow.errors import UserError
from emo_mlflow.serving.call_options import Options
from emo_mlflow.serving.steered_model import ARTIFACT, RECORDED, SteeredModel, load_steered

COLUMNS = ("prompt", "text", 0)  # 0: of a list


class _Ignored(logging.Filter):
    """Hears of parameters that MLflow leaves out of a call, with a warning that who asks a server does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.of_thread = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        """Keeps the message for the call that follows in this thread, if it is about parameters of such a model."""
        message = record.getMessage()
        if message.startswith("Unrecognized params") and all(repr(name) in message for name in Options.__dataclass_fields__):
            self.of_thread.message = message
        return True

    def check(self) -> None:
        """Raises UserError if a parameter of this call was left out."""
        message: str | None = self.of_thread.__dict__.pop("message", None)
        if message is not None:
            names = message.partition("[")[2].partition("]")[0]
            raise UserError(f"unknown parameter {names}: there are {', '.join(Options.__dataclass_fields__)}")


IGNORED = _Ignored()


class SteeredPythonModel(PythonModel):
    """Prompts to completions."""

    def load_context(self, context: PythonModelContext) -> None:
        """Loads the direction, and the base model from where the model's configuration says."""
        logging.getLogger("mlflow.models.utils").addFilter(IGNORED)
        config: Mapping[str, Any] = context.model_config or {}
        self.model: SteeredModel = load_steered(
            Path(context.artifacts[ARTIFACT]),
            str(config.get("base_model", RECORDED)),
            str(config.get("device", "auto")),
        )

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[str]:
        """Prompts to texts, in the same order.

        Args:
            model_input: a column prompt or text, or 0, which MLflow makes of a string or a list.
            params: as in call_options.Options.

        Raises:
            MlflowException: for what the caller can mend: of other exceptions a server does not hand on the message.
        """
        try:
            IGNORED.check()
            return self.model.complete(read_prompts(model_input), Options.read(params or {}))
        except UserError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None


def read_prompts(table: pd.DataFrame) -> list[Any]:
    """The prompts in what MLflow hands over.

    Raises:
        UserError: if there is no such column: MLflow leaves out what the signature does not name.
    """
    name = next((name for name in COLUMNS if name in table), None)
    if name is None:
        raise UserError("expected a list of texts, or a column called prompt or text")
    return [text for cell in table[name] for text in (cell if isinstance(cell, list) else [cell])]  # a dict of lists is one row to MLflow


mlflow.models.set_model(SteeredPythonModel())

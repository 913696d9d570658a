"""The code of a logged steered model, which MLflow runs when it loads the model (a model from code: nothing is pickled)."""

from __future__ import annotations

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


class SteeredPythonModel(PythonModel):
    """Prompts to completions."""

    def load_context(self, context: PythonModelContext) -> None:
        """Loads the direction, and the base model from where the model's configuration says."""
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
            model_input: one column; MLflow makes it of a string, a list, or the first column of a table.
            params: as in call_options.Options.

        Raises:
            MlflowException: for what the caller can mend: of other exceptions a server does not hand on the message.
        """
        try:
            return self.model.complete(read_prompts(model_input), Options.read(params or {}))
        except UserError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None


def read_prompts(table: pd.DataFrame) -> list[Any]:
    """The prompts in what MLflow hands over.

    Raises:
        UserError: if the column has another name: MLflow takes a table's first column, whatever it is.
    """
    name = next((name for name in COLUMNS if name in table), None)
    if name is None:
        raise UserError(f"expected a first column prompt, found {', '.join(map(str, table.columns))}")
    return list(table[name])


mlflow.models.set_model(SteeredPythonModel())

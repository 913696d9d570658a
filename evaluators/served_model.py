"""The code of a logged scorer, which MLflow runs when it loads the model (a model from code: nothing is pickled)."""

from __future__ import annotations

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel, PythonModelContext

from emo_mlflow.errors import UserError
from emo_mlflow.scoring.loading import load_scorers
from emo_mlflow.scoring.protocol import Scorers


class ScorerModel(PythonModel):
    """Scores the column `text`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Loads and verifies the files that were logged."""
        self.scorers: Scorers = load_scorers([context.artifacts["scorer"]])

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow takes hints for schemas
        """A frame with a column `text` -> a float32 column per metric, rows in the same order.

        Raises:
            MlflowException: a text is not a string; of this exception alone, `mlflow models serve` sends the message on.
        """
        try:
            scores = self.scorers.score(list(model_input["text"]))
        except UserError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None
        return pd.DataFrame(scores, columns=list(self.scorers.metrics), index=model_input.index)


mlflow.models.set_model(ScorerModel())

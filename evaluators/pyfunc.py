"""Scorers as MLflow models: `mlflow.pyfunc.load_model(...).predict(df)`, and `mlflow models serve`."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.models import infer_signature
from mlflow.models.model import ModelInfo

from emo_mlflow import __version__
from emo_mlflow.scoring.cards import CARD, GRAPH, TOKENIZER
from emo_mlflow.scoring.loading import score
from emo_mlflow.scoring.onnx import find_scorer

EXAMPLE = pd.DataFrame({"text": ["Thank you so much for your help!", "I will not accept this."]})


def log_scorer(scorer: str = "embedded", name: str = "scorer", **options: Any) -> ModelInfo:
    """Logs a scorer's graph, tokenizer and card as an MLflow model, with a signature and an input example.

    The model needs this package where it is loaded: `mlflow models serve -m URI --env-manager local` uses the active
    environment.

    Args:
        scorer: as for `emo_mlflow.scoring.loading.load_scorers`, but one scorer and not a set.
        name: of the logged model.
        options: for `mlflow.pyfunc.log_model`, such as `registered_model_name`.

    Raises:
        UserError: the scorer is missing or corrupted.
    """
    folder = find_scorer(scorer)
    scores = score(EXAMPLE["text"], str(folder))
    with tempfile.TemporaryDirectory() as temporary:
        copied = Path(temporary) / "scorer"
        copied.mkdir()
        for file in (GRAPH, TOKENIZER, CARD):
            shutil.copyfile(folder / file, copied / file)
        return mlflow.pyfunc.log_model(
            name=name,
            python_model=str(Path(__file__).with_name("served_model.py")),
            artifacts={"scorer": str(copied)},
            signature=infer_signature(EXAMPLE, scores),
            input_example=EXAMPLE,
            pip_requirements=[f"emo_mlflow=={__version__}"],
            **options,
        )

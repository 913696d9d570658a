"""Scorers as MLflow models: `mlflow.pyfunc.load_model(...).predict(df)`, and `mlflow models serve`."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import infer_signature
from mlflow.models.model import ModelInfo

from emo_mlflow.scoring.cards import CARD, GRAPH, TOKENIZER
from emo_mlflow.scoring.loading import score
from emo_mlflow.scoring.onnx import find_scorer
from emo_mlflow.serving.portable import OF_SCORING, log_portable

EXAMPLE = pd.DataFrame({"text": ["Thank you so much for your help!", "I will not accept this."]})


def log_scorer(scorer: str = "embedded", name: str = "scorer", **options: Any) -> ModelInfo:
    """Logs a scorer's graph, tokenizer and card as an MLflow model, with a signature and an input example.

    This package's code goes along, and what it needs is pinned: `mlflow models serve -m URI --env-manager uv` makes an environment of its
    own, and `--env-manager local` uses the active one.

    Args:
        scorer: as for `emo_mlflow.scoring.loading.load_scorers`, but one scorer and not a set.
        name: of the logged model.
        options: for `mlflow.models.Model.log`, such as `registered_model_name`.

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
        return log_portable(
            name,
            Path(__file__).with_name("served_model.py"),
            {"scorer": str(copied)},
            needed=OF_SCORING.__contains__,
            signature=infer_signature(EXAMPLE, scores),
            input_example=EXAMPLE,
            **options,
        )

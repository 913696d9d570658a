"""What a steered model that version 0.1 logged imports when it is loaded: it says that it must be logged again."""

from __future__ import annotations

from emo_mlflow import __version__

raise ImportError(
    f"this steered model was logged by emo_mlflow 0.1, and this is {__version__}: log it again with `emo-mlflow log-model`, "
    "or load it where emo_mlflow 0.1 is installed"
)

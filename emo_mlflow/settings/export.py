"""The settings of `export`, the entry point export_scorers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from emo_mlflow.settings.declared import parameter
from emo_mlflow.settings.parsing import boolean, choice, needed
from emo_mlflow.types import Precision, WeightsFormat


# fmt: off
@dataclass(frozen=True, kw_only=True)
class ScorerExport:
    """Which classifiers are exported to ONNX, and how."""

    scorer: str = parameter(needed, "hub", "hub, a card's name or file, a hub id, or a folder with a sequence classifier.", "what")
    precision: Precision = parameter(
        choice(*get_args(Precision)), "int8", "Of the weights: int8, once the float32 graph has been checked, or float32.", "how much"
    )
    optimize: bool = parameter(boolean, "false", "Let ONNX Runtime optimise the graph first.", "running")
    weights: WeightsFormat = parameter(
        choice(*get_args(WeightsFormat)), "safetensors", "pickle also reads pytorch_model.bin, where you trust its source.", "running"
    )

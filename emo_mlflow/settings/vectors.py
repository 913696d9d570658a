"""The settings of `vectors`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from emo_mlflow.settings.declared import parameter, same_as
from emo_mlflow.settings.direction_choice import METHODS
from emo_mlflow.settings.parsing import boolean, choice, each, integer, method
from emo_mlflow.settings.sweep import SweepSettings
from emo_mlflow.types import Aggregation, FitOn, Site, Template


# fmt: off
@dataclass(frozen=True, kw_only=True)
class VectorSettings:
    """What `vectors` is asked for. `emotions` is None for all in the data set."""

    model: str = same_as(SweepSettings, "model")
    dataset: str = same_as(SweepSettings, "dataset")
    text_column: str = same_as(SweepSettings, "text_column")
    emotion_column: str = same_as(SweepSettings, "emotion_column")
    encoding: str = same_as(SweepSettings, "encoding")
    pairs: str = same_as(SweepSettings, "pairs")
    personas: str = same_as(SweepSettings, "personas")
    emotions: tuple[str, ...] | None = same_as(SweepSettings, "emotions")
    site: Site = same_as(SweepSettings, "site")
    direction: str = same_as(SweepSettings, "direction")
    aggregation: Aggregation = parameter(
        choice(*get_args(Aggregation)), "mean", "A text's tokens as one vector: mean, last, or by the last one's attention.", "what"
    )
    methods: tuple[str, ...] = parameter(each(method), ",".join(METHODS), "Read-outs that are judged on held-out texts at every layer.", "what")
    components: int = parameter(integer(1), "8", "Rank of the subspaces in subspaces.safetensors.", "how much")
    n_bootstrap: int = parameter(integer(2), "100", "Resamples of texts for the stability of subspaces.", "how much")
    save_activations: bool = parameter(boolean, "false", "Keep every text's vector at every layer in activations.safetensors.", "logging")
    prepend_bos: bool = same_as(SweepSettings, "prepend_bos")
    template: Template | Literal["auto"] = same_as(SweepSettings, "template")
    system: str = same_as(SweepSettings, "system")
    fit_on: FitOn | None = same_as(SweepSettings, "fit_on")
    device: str = same_as(SweepSettings, "device")
    dtype: str = same_as(SweepSettings, "dtype")
    seed: int = same_as(SweepSettings, "seed")

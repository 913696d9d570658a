"""The settings of `steer`: one condition, tried on a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from emo_mlflow.settings.declared import parameter, same_as
from emo_mlflow.settings.parsing import as_it_is, integer, number, or_nothing
from emo_mlflow.settings.scopes import scope
from emo_mlflow.settings.sweep import SweepSettings
from emo_mlflow.types import AlphaUnit, FitOn, Operation, Site, Template


# fmt: off
@dataclass(frozen=True, kw_only=True)
class SteerSettings:
    """What `steer` is asked for. None leaves the choice to the sweep that `run_id` names, or else to a default that depends on the model."""

    emotion: str | None = parameter(or_nothing(as_it_is), "", "Whose direction; may be left out where there is one only.", "what")
    layer: int | None = parameter(or_nothing(integer(0)), "", "Where to inject. Default: the middle layer; of a sweep, its best.", "where")
    alpha: float | None = parameter(or_nothing(number), "", "How strongly. Default: 1; of a sweep, its best.", "how much")
    run_id: str | None = parameter(
        or_nothing(as_it_is), "", "A finished sweep, whose model, directions and settings are taken. Default: directions are fitted now.", "what"
    )
    model: str = same_as(SweepSettings, "model")
    dataset: str = same_as(SweepSettings, "dataset")
    text_column: str = same_as(SweepSettings, "text_column")
    emotion_column: str = same_as(SweepSettings, "emotion_column")
    encoding: str = same_as(SweepSettings, "encoding")
    pairs: str = same_as(SweepSettings, "pairs")
    personas: str = same_as(SweepSettings, "personas")
    directions: str = same_as(SweepSettings, "directions")
    direction: str = same_as(SweepSettings, "direction")
    alpha_unit: AlphaUnit = same_as(SweepSettings, "alpha_unit")
    alpha_schedule: str = same_as(SweepSettings, "alpha_schedule")
    operation: Operation = same_as(SweepSettings, "operation")
    scope: str | None = parameter(
        or_nothing(scope), "",
        "Positions: generated (every new token), window (the last W), all, first:K, prompt, prompt:K. Default: generated, or the sweep's.", "where"
    )
    patch_window: int | None = parameter(or_nothing(integer(1)), "", "W of scope window. Default: 3; of a sweep, its own.", "where")
    site: Site = same_as(SweepSettings, "site")
    template: Template | Literal["auto"] = same_as(SweepSettings, "template")
    system: str = same_as(SweepSettings, "system")
    fit_on: FitOn | None = same_as(SweepSettings, "fit_on")
    prepend_bos: bool = same_as(SweepSettings, "prepend_bos")
    max_new_tokens: int = parameter(integer(1), "40", "New tokens of a text, at most.", "how much")
    min_new_tokens: int = parameter(integer(0), "0", "End-of-sequence is suppressed before this many.", "how much")
    temperature: float = same_as(SweepSettings, "temperature")
    seed: int = same_as(SweepSettings, "seed")
    device: str = same_as(SweepSettings, "device")
    dtype: str = same_as(SweepSettings, "dtype")
# fmt: on

OF_A_CALL = ("max_new_tokens", "temperature", "seed")
# What may be said beside a sweep: which of its conditions, and how a text is written.
BESIDE_A_SWEEP = ("emotion", "layer", "alpha", "run_id", "scope", "patch_window", "device", *OF_A_CALL)

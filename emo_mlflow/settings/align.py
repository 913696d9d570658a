"""The settings of `align`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from emo_mlflow.settings.declared import parameter, same_as
from emo_mlflow.settings.parsing import choice, integer, needed
from emo_mlflow.settings.sweep import SweepSettings
from emo_mlflow.types import MapKind, Pairing, Site


# fmt: off
@dataclass(frozen=True, kw_only=True)
class AlignSettings:
    """What `align` is asked for: directions of `model_a` are carried over to `model_b`. `emotions` is None for all in the data set."""

    model_a: str = parameter(needed, "", "Model whose directions are carried over: a name, a hub id or a folder.", "what")
    model_b: str = parameter(needed, "", "Model that they are carried to.", "what")
    dataset: str = same_as(SweepSettings, "dataset")
    text_column: str = same_as(SweepSettings, "text_column")
    emotion_column: str = same_as(SweepSettings, "emotion_column")
    encoding: str = same_as(SweepSettings, "encoding")
    emotions: tuple[str, ...] | None = same_as(SweepSettings, "emotions")
    site: Site = same_as(SweepSettings, "site")
    map: MapKind = parameter(
        choice(*get_args(MapKind)), "procrustes", "Map between the models' residual spaces: a rotation (procrustes), or ridge.", "what"
    )
    unit: Pairing = parameter(
        choice(*get_args(Pairing)), "word", "What pairs the models: the stream at each word's end (word), or a text's mean.", "what"
    )
    k_max: int = parameter(integer(1), "8", "Overlaps are computed for subspaces of rank 1 to this.", "how much")
    depths: int = parameter(integer(1), "8", "Relative depths of each model, all of which are paired.", "how much")
    n_random: int = parameter(integer(1), "500", "Random subspaces of the first null.", "how much")
    n_permutations: int = parameter(integer(1), "100", "Shuffled labels of the second null.", "how much")
    prepend_bos: bool = same_as(SweepSettings, "prepend_bos")
    device: str = same_as(SweepSettings, "device")
    dtype: str = same_as(SweepSettings, "dtype")
    seed: int = same_as(SweepSettings, "seed")

"""The settings of an alignment."""

from __future__ import annotations

from dataclasses import dataclass

from emo_mlflow.types import MapKind, Pairing, Site


@dataclass(frozen=True)
class AlignSettings:
    """What `align` is asked for: directions of `model_a` are carried over to `model_b`.

    Attributes:
        map: whose result the overlap table, its nulls and directions.safetensors show: procrustes or ridge.
        unit: what the two models are paired by: word (the stream at each word's last token) or text (a text's mean).
        k_max: overlaps are computed for subspaces of rank 1 to this.
        depths: relative depths of each model that are paired with each other.
        n_random, n_permutations: draws of the two nulls.
    """

    model_a: str
    model_b: str
    dataset: str = "builtin"
    emotions: tuple[str, ...] | None = None
    site: Site = "resid_pre"
    map: MapKind = "procrustes"
    unit: Pairing = "word"
    k_max: int = 8
    depths: int = 8
    n_random: int = 500
    n_permutations: int = 100
    prepend_bos: bool = True
    device: str = "auto"
    dtype: str = "float32"
    seed: int = 0

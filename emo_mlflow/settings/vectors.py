"""The settings of `vectors`."""

from __future__ import annotations

from dataclasses import dataclass

from emo_mlflow.settings.direction_choice import METHODS
from emo_mlflow.types import Aggregation, Site


@dataclass(frozen=True)
class VectorSettings:
    """What `vectors` is asked for.

    Attributes:
        direction: what directions.safetensors holds: mean_diff, pc1 (pc2, ...), lda, logistic or subspace:K.
        aggregation: how a text's tokens become one vector.
        methods: the read-outs that are judged on held-out texts.
        components: k, the rank of the subspaces in subspaces.safetensors.
        n_bootstrap: resamples for the subspaces' stability.
        save_activations: keep every text's vector in activations.safetensors.
    """

    model: str = "smollm2-135m"
    dataset: str = "builtin"
    emotions: tuple[str, ...] | None = None
    site: Site = "resid_pre"
    direction: str = "mean_diff"
    aggregation: Aggregation = "mean"
    methods: tuple[str, ...] = METHODS
    components: int = 8
    n_bootstrap: int = 100
    prepend_bos: bool = True
    save_activations: bool = False
    device: str = "auto"
    dtype: str = "float32"
    seed: int = 0

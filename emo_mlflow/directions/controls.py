"""Random directions, drawn as controls."""

from __future__ import annotations

import numpy as np

from emo_mlflow.types import FloatArray, digest


def random_control(
    vector: FloatArray, basis: FloatArray | None, *, seed: int, emotion: str, layer: int, draw: int
) -> tuple[FloatArray, FloatArray | None]:
    """A direction drawn uniformly, with the norm (and the rank) of the one that it controls for.

    The draw depends on the arguments alone and is equal on every machine: numpy's legacy generator is frozen. It does not depend
    on alpha, so that a control's dose-response is that of one direction.

    Args:
        vector: float32 [d_model].
        basis: float32 [k, d_model] or None.
    """
    key = int(digest(["random control", seed, emotion, layer, draw], 8), 16)
    rank = 1 if basis is None else len(basis)
    normal = np.random.RandomState(key).standard_normal((len(vector), rank))
    orthonormal, triangular = np.linalg.qr(normal)
    drawn = (orthonormal * np.sign(np.diag(triangular))).T
    if basis is None:
        return (drawn[0] * float(np.linalg.norm(vector.astype(np.float64)))).astype(np.float32), None
    coordinates = basis.astype(np.float64) @ vector
    return (coordinates @ drawn).astype(np.float32), drawn.astype(np.float32)

"""Random directions, drawn as controls."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from emo_mlflow.errors import UserError
from emo_mlflow.types import Control, FloatArray, digest

FEWEST_TEXTS = 20  # with fewer, draws of one kind are too much alike to be 19 or more


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


def draw_control(
    kind: Control,
    values: FloatArray,
    labels: Sequence[str],
    reference: str | None,
    *,
    emotion: str | None,
    seed: int,
    draw: int,
) -> FloatArray:
    """A random direction of a kind, float32 [d_model]; its norm means nothing. One draw is one choice through all layers.

    `isotropic`: uniform. `covariance`: a random combination of the texts' deviations from their emotion's mean, so it varies as the
    stream does. `shuffled`: the mean difference after the labels of the emotion's and the reference's texts were shuffled.

    Args:
        values: float32 [n_texts, d_model], of one layer.
        emotion: for `shuffled`.

    Raises:
        UserError: if there are too few texts.
    """
    names = np.array(labels)
    if kind == "isotropic":
        return np.asarray(_generator(kind, seed, draw).standard_normal(values.shape[1]), np.float32)
    if kind == "covariance":
        centred = values.astype(np.float64)
        for name in dict.fromkeys(labels):
            centred[names == name] -= centred[names == name].mean(axis=0)
        if len(centred) < FEWEST_TEXTS:
            raise UserError(f"controls=covariance needs {FEWEST_TEXTS} texts to fit on, and there are {len(centred)}: leave it out, or give more")
        return np.asarray(_generator(kind, seed, draw).standard_normal(len(centred)) @ centred, np.float32)
    used = np.flatnonzero((names == emotion) | (names == reference)) if reference else np.arange(len(names))
    positive = names[used] == emotion
    if len(used) < FEWEST_TEXTS:
        raise UserError(
            f"controls=shuffled needs {FEWEST_TEXTS} texts of {emotion} and what it is compared with, and there are {len(used)}: "
            "leave it out, or give more"
        )
    shuffled = _generator(kind, seed, draw, str(emotion)).permutation(positive)
    rows = values[used].astype(np.float64)
    return (rows[shuffled].mean(axis=0) - rows[~shuffled].mean(axis=0)).astype(np.float32)


def _generator(*key: object) -> np.random.RandomState:
    return np.random.RandomState(int(digest(["control", *key], 8), 16))

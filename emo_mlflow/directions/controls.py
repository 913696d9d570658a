"""Random directions, drawn as controls."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from emo_mlflow.directions.fitting import injected
from emo_mlflow.directions.readouts import contrasts
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


def isotropic_control(d_model: int, *, seed: int, draw: int) -> FloatArray:
    """A uniform direction, float32 [d_model], the same at every layer; its norm means nothing."""
    return np.asarray(_generator("isotropic", seed, draw).standard_normal(d_model), np.float32)


def covariance_control(states: FloatArray, *, seed: int, draw: int) -> FloatArray:
    """A direction drawn with the covariance of the stream, float32 [d_model]; its norm means nothing.

    It is a combination of the tokens' deviations from their mean with normal weights, which are the same at every layer: one draw
    is one choice through all layers.

    Args:
        states: float32 [n_tokens, d_model], deviations of the stream at one layer from their mean.
    """
    weights = _generator("covariance", seed, draw).standard_normal(len(states))
    return np.asarray(weights @ states.astype(np.float64), np.float32)


def shuffled_control(
    choice: str, values: FloatArray, labels: Sequence[str], reference: str | None, *, emotion: str, seed: int, draw: int
) -> FloatArray:
    """What fitting gives if the labels of an emotion's texts and of the reference's are shuffled, float32 [d_model].

    It is fitted as the emotion's own direction is. So if the labels said nothing, the two would be exchangeable.

    Args:
        choice: as in `fitting.choose_direction`.
        values: float32 [n_texts, d_model], of one layer.
    """
    contrast = next(contrast for contrast in contrasts(labels, reference) if contrast.emotion == emotion)
    x, generator = values[contrast.used].astype(np.float64), _generator("shuffled", seed, draw, emotion)
    if contrast.paired:  # which side of a pair is which says nothing either
        n = len(x) // 2
        swapped = np.tile(generator.random_sample(n) < 0.5, 2)[:, None]
        return injected(choice, np.where(swapped, np.roll(x, n, axis=0), x), contrast).astype(np.float32)
    return injected(choice, x, contrast._replace(positive=generator.permutation(contrast.positive))).astype(np.float32)


def check_controls(controls: Sequence[Control], labels: Sequence[str], reference: str | None) -> None:
    """Refuses controls that cannot be drawn from so few texts.

    Raises:
        UserError: naming the control, and how many texts are missing.
    """
    for emotion, used, _, paired in contrasts(labels, reference):
        others = "of its pairs" if paired else reference or "the other emotions"
        if "shuffled" in controls and len(used) < FEWEST_TEXTS:
            raise UserError(
                f"controls=shuffled needs {FEWEST_TEXTS} texts of {emotion} and {others} to fit on, and there are "
                f"{len(used)}: give {FEWEST_TEXTS - len(used)} more, or leave it out of controls"
            )
    if "covariance" in controls and len(labels) < FEWEST_TEXTS:
        raise UserError(
            f"controls=covariance needs {FEWEST_TEXTS} texts to fit on, and there are {len(labels)}: give {FEWEST_TEXTS - len(labels)} more, "
            "or leave it out of controls"
        )


def _generator(*key: object) -> np.random.RandomState:
    return np.random.RandomState(int(digest(["control", *key], 8), 16))

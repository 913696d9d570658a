"""Subspaces of an emotion: principal axes of its differences, what they explain, how stable they are, how far two overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import linalg

from emo_mlflow.directions.readouts import Floats, Mask, contrasts, differences, leading_axes
from emo_mlflow.errors import UserError
from emo_mlflow.types import FloatArray

QUANTILES = (0.025, 0.975)


@dataclass(frozen=True, eq=False)
class Subspaces:
    """Principal axes of each emotion's differences from the reference's mean.

    Attributes:
        bases: by emotion, float32 [n_layers, k, d], orthonormal rows, the axis that explains most first.
        explained: by emotion, float32 [n_layers, k], each axis's share of all the variance about the reference's mean, in d
            dimensions, so that the shares of k axes sum to less than 1.
    """

    bases: dict[str, FloatArray]
    explained: dict[str, FloatArray]


def check_components(k: int, labels: Sequence[str], reference: str | None, d_model: int) -> None:
    """Refuses more axes than an emotion's texts, or the stream's width, can give.

    Raises:
        UserError: naming the emotion with the fewest texts.
    """
    for emotion, _, positive, _ in contrasts(labels, reference):
        most = min(int(positive.sum()), d_model)
        if not 1 <= k <= most:
            raise UserError(
                f"k={k} components: {emotion!r} has {int(positive.sum())} texts of width {d_model}, so k can be 1 to {most}; "
                "lower it or give more texts"
            )


def principal_axes(x: Floats, positive: Mask, k: int) -> tuple[Floats, Floats]:
    """The k principal axes of the differences, [k, d], and their shares of the whole variance, [k].

    The variance is about the reference's mean, so the axes hold the displacement that an emotion's texts share.
    """
    rows = differences(x, positive)
    axes, squares = leading_axes(rows, k)
    total = float((rows**2).sum())
    return axes, squares / total if total else squares


def fit_subspaces(values: FloatArray, labels: Sequence[str], reference: str | None, k: int) -> Subspaces:
    """Principal axes at every layer.

    Args:
        values: float32 [n_texts, n_layers, d].

    Raises:
        UserError: for more components than the data allow, or fewer than two texts of a class.
    """
    check_components(k, labels, reference, values.shape[2])
    bases, explained = {}, {}
    for contrast in contrasts(labels, reference):
        layers = [values[contrast.used, layer].astype(np.float64) for layer in range(values.shape[1])]
        found = [principal_axes(*contrast.displacements(x), k) for x in layers]
        bases[contrast.emotion] = np.stack([axes for axes, _ in found]).astype(np.float32)
        explained[contrast.emotion] = np.stack([shares for _, shares in found]).astype(np.float32)
    return Subspaces(bases, explained)


def overlap(cosines: Floats) -> Floats:
    """Mean squared cosine of the principal angles between the leading k axes of two bases, for k = 1..K, [..., K].

    With orthonormal rows A and B and M = A B', the squared cosines of the angles between the leading k axes sum to
    |M[:k, :k]|_F^2 (Bjorck and Golub 1973); divided by k this is 1 for equal subspaces and 0 for orthogonal ones.

    Args:
        cosines: M, float64 [..., K, K].
    """
    ranks = np.arange(cosines.shape[-1])
    cumulative = (cosines**2).cumsum(axis=-1).cumsum(axis=-2)
    return np.asarray(cumulative[..., ranks, ranks] / (ranks + 1))


def largest_angle(cosines: Floats) -> Floats:
    """The largest principal angle in degrees between the leading k axes, for k = 1..K; arguments as `overlap`."""
    found = [np.linalg.svd(cosines[..., :k, :k], compute_uv=False)[..., -1] for k in range(1, cosines.shape[-1] + 1)]
    return np.degrees(np.arccos(np.clip(np.stack(found, axis=-1), 0, 1)))


def bootstrap_cosines(x: Floats, positive: Mask, axes: Floats, n_bootstrap: int, seed: int) -> Floats:
    """Inner products of the axes of resampled texts with the given ones, float64 [n_bootstrap, k, k].

    Both classes are resampled. Everything is in the texts' inner products: the axes of a resample are never formed.
    """
    own, others = x[positive], x[~positive]
    between, among = own @ others.T, others @ others.T
    gram, on_axes, others_on_axes = own @ own.T, own @ axes.T, others @ axes.T
    generator = np.random.default_rng([seed, len(own), len(others)])
    k = len(axes)
    cosines = np.zeros((n_bootstrap, k, k))
    for draw in range(n_bootstrap):
        counts = generator.multinomial(len(own), np.full(len(own), 1 / len(own)))
        weights = generator.multinomial(len(others), np.full(len(others), 1 / len(others))) / len(others)
        kept = np.flatnonzero(counts)
        to_mean = between[kept] @ weights
        inner = gram[np.ix_(kept, kept)] - to_mean[:, None] - to_mean[None] + weights @ among @ weights
        root = np.sqrt(counts[kept])
        rank = min(k, len(kept))
        squares, vectors = linalg.eigh(
            inner * root[:, None] * root, subset_by_index=[len(kept) - rank, len(kept) - 1], driver="evr"
        )
        projected = (on_axes[kept] - weights @ others_on_axes) * root[:, None]
        safe = np.sqrt(np.maximum(squares[::-1], 1e-12 * max(squares[-1], 1e-300)))
        cosines[draw, :rank] = (vectors[:, ::-1].T @ projected) / safe[:, None]
    return cosines


def stability(
    values: FloatArray,
    labels: Sequence[str],
    reference: str | None,
    subspaces: Subspaces,
    n_bootstrap: int,
    seed: int = 0,
) -> pd.DataFrame:
    """How far each subspace would turn if other texts of the same kind had been given.

    Returns:
        emotion, layer, k, explained (by the leading k axes), stability (mean overlap of bootstrap subspaces with the fitted one),
        stability_low and stability_high (95% of the bootstrap), angle_median and angle_high (largest principal angle, degrees).
    """
    rows: list[dict[str, Any]] = []
    for contrast in contrasts(labels, reference):
        emotion = contrast.emotion
        for layer in range(values.shape[1]):
            axes = subspaces.bases[emotion][layer].astype(np.float64)
            x, positive = contrast.displacements(values[contrast.used, layer].astype(np.float64))
            cosines = bootstrap_cosines(x, positive, axes, n_bootstrap, seed)
            overlaps, angles = overlap(cosines), largest_angle(cosines)
            low, high = np.quantile(overlaps, QUANTILES, axis=0)
            explained = subspaces.explained[emotion][layer].cumsum()
            rows += [
                {
                    "emotion": emotion,
                    "layer": layer,
                    "k": k + 1,
                    "explained": float(explained[k]),
                    "stability": float(overlaps[:, k].mean()),
                    "stability_low": float(low[k]),
                    "stability_high": float(high[k]),
                    "angle_median": float(np.median(angles[:, k])),
                    "angle_high": float(np.quantile(angles[:, k], QUANTILES[1])),
                }
                for k in range(len(axes))
            ]
    return pd.DataFrame(rows)


def random_overlaps(k_max: int, d: int, n: int, seed: int) -> npt.NDArray[np.float64]:
    """Overlap of two random subspaces of R^d for k = 1..k_max, float64 [n, k_max]; its expectation is k / d.

    One of the two can be fixed: uniform subspaces are as uniform beside the first k axes as beside any others.
    """
    normal = np.random.default_rng([seed, d]).standard_normal((n, d, k_max))
    bases = np.linalg.qr(normal)[0]
    return overlap(np.swapaxes(bases[:, :k_max], 1, 2))

"""How good a scorer's outputs are: F1, thresholds, temperatures, correlations, and bootstrap intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from emo_mlflow.types import FloatArray

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.floating[Any]]

GRID = np.round(np.arange(0.02, 0.98, 0.01), 2)


def f1_per_label(predicted: Bools, true: Bools, counts: Floats | None = None) -> Floats:
    """Boolean [n, labels] twice -> F1, float64 [labels]; 0 where a label is neither predicted nor true.

    With `counts` [resamples, n], how often each row occurs in each resample: [resamples, labels].
    """
    weights = np.ones(len(true)) if counts is None else counts
    hits = weights @ (predicted & true).astype(np.float64)
    total = weights @ predicted.astype(np.float64) + weights @ true.astype(np.float64)
    return 2 * hits / np.maximum(total, 1)


def resample_counts(n: int, n_resamples: int, seed: int = 0) -> Floats:
    """How often each of n rows occurs in each bootstrap resample, [n_resamples, n]."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_resamples).astype(np.float64)


def f1_intervals(predicted: Bools, true: Bools, n_resamples: int = 1000) -> tuple[Floats, Floats]:
    """95% percentile bootstrap intervals of F1: per label [labels, 2], and of their mean [2]."""
    f1 = f1_per_label(predicted, true, resample_counts(len(true), n_resamples))
    return np.quantile(f1, (0.025, 0.975), axis=0).T, np.quantile(f1.mean(axis=1), (0.025, 0.975))


def pearson(a: Numbers, b: Numbers) -> float:
    """Pearson's r of two vectors."""
    return float(np.corrcoef(a, b)[0, 1])


def pearson_interval(a: Numbers, b: Numbers, n_resamples: int = 1000) -> Floats:
    """95% percentile bootstrap interval of Pearson's r, [2]."""
    generator = np.random.default_rng(0)
    rows = generator.integers(0, len(a), (n_resamples, len(a)))
    return np.quantile([pearson(a[i], b[i]) for i in rows], (0.025, 0.975))


def tune_thresholds(probabilities: FloatArray, true: Bools, n_resamples: int = 50) -> Floats:
    """Thresholds [labels] that give each label the best F1: the median over bootstrap resamples of the best in `GRID`.

    The median steadies labels with a dozen positives, whose best threshold on one sample is mostly noise.
    """
    counts = resample_counts(len(true), n_resamples)
    best = np.empty((true.shape[1], n_resamples))
    for label in range(true.shape[1]):
        predicted = probabilities[:, label, None] >= GRID
        f1 = f1_per_label(predicted, np.broadcast_to(true[:, label, None], predicted.shape), counts)
        best[label] = GRID[f1.argmax(axis=1)]
    return np.round(np.median(best, axis=1), 4)


def cross_fitted_macro_f1(probabilities: FloatArray, true: Bools, n_folds: int = 5) -> float:
    """Macro-F1 with each fold's predictions made by thresholds that were tuned on the other folds."""
    folds = np.random.default_rng(0).permutation(len(true)) % n_folds
    predicted = np.zeros_like(true)
    for fold in range(n_folds):
        thresholds = tune_thresholds(probabilities[folds != fold], true[folds != fold])
        predicted[folds == fold] = probabilities[folds == fold] >= thresholds
    return float(f1_per_label(predicted, true).mean())


def fit_temperature(logits: FloatArray, targets: FloatArray, exclusive: bool) -> float:
    """The divisor of the logits that minimises the cross-entropy (Guo et al. 2017); targets are probabilities."""

    def loss(log_t: float) -> float:
        scaled = logits / np.exp(log_t)
        if exclusive:
            return float(-(targets * log_softmax(scaled, axis=1)).sum(axis=1).mean())
        return float((np.logaddexp(0, scaled) - targets * scaled).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-2.0, 2.0), method="bounded").x))

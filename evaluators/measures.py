"""How good a scorer's outputs are: F1, thresholds, temperatures, correlations, and bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from emo_mlflow.types import FloatArray

GRID = np.round(np.arange(0.02, 0.98, 0.01), 2)


def f1_per_label(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Boolean [n, labels] twice -> float64 [labels]; 0 where a label is neither predicted nor true."""
    hits = (predicted & true).sum(axis=0)
    return 2 * hits / np.maximum(predicted.sum(axis=0) + true.sum(axis=0), 1)


def tune_thresholds(probabilities: FloatArray, true: np.ndarray, n_resamples: int = 50, seed: int = 0) -> np.ndarray:
    """Thresholds [labels] that give each label the best F1: the median over bootstrap resamples of the best in `GRID`.

    The median steadies labels with a dozen positives, whose best threshold on one sample is mostly noise.
    """
    generator = np.random.default_rng(seed)
    n, n_labels = true.shape
    counts = generator.multinomial(n, np.full(n, 1 / n), size=n_resamples).astype(np.float64)
    best = np.empty((n_labels, n_resamples))
    for label in range(n_labels):
        predicted = (probabilities[:, label, None] >= GRID).astype(np.float64)
        hits = (counts * true[:, label]) @ predicted
        f1 = 2 * hits / np.maximum(counts @ predicted + (counts @ true[:, label])[:, None], 1)
        best[label] = GRID[f1.argmax(axis=1)]
    return np.round(np.median(best, axis=1), 4)


def cross_fitted_macro_f1(probabilities: FloatArray, true: np.ndarray, n_folds: int = 5, seed: int = 0) -> float:
    """Macro-F1 with each fold's predictions made by thresholds that were tuned on the other folds."""
    folds = np.random.default_rng(seed).permutation(len(true)) % n_folds
    predicted = np.zeros_like(true)
    for fold in range(n_folds):
        thresholds = tune_thresholds(probabilities[folds != fold], true[folds != fold])
        predicted[folds == fold] = probabilities[folds == fold] >= thresholds
    return float(f1_per_label(predicted, true).mean())


def temperature(logits: FloatArray, targets: FloatArray, exclusive: bool) -> float:
    """The divisor of the logits that minimises the cross-entropy (Guo et al. 2017); targets are probabilities."""

    def loss(log_t: float) -> float:
        scaled = logits / np.exp(log_t)
        if exclusive:
            return float(-(targets * log_softmax(scaled, axis=1)).sum(axis=1).mean())
        return float((np.logaddexp(0, scaled) - targets * scaled).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-2.0, 2.0), method="bounded").x))


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float], n: int, n_resamples: int = 500, seed: int = 0
) -> tuple[float, float]:
    """95% percentile interval of `statistic(row indices)` over resamples of n rows."""
    generator = np.random.default_rng(seed)
    values = [statistic(generator.integers(0, n, n)) for _ in range(n_resamples)]
    low, high = np.nanquantile(values, (0.025, 0.975))
    return round(float(low), 4), round(float(high), 4)


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's r of two vectors."""
    return float(np.corrcoef(a, b)[0, 1])

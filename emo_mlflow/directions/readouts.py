"""Linear read-outs: directions that tell an emotion's texts from the reference's, judged on texts that they were not fitted on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import linalg, optimize, special, stats
from statsmodels.stats.proportion import proportion_confint

from emo_mlflow.errors import UserError
from emo_mlflow.settings.direction_choice import METHODS, parse_method
from emo_mlflow.types import NEGATIVE, FloatArray

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Method = Callable[[Floats, Mask], Floats]

FOLDS = 5
LEVEL = 0.95


def mean_difference(x: Floats, positive: Mask) -> Floats:
    """Mean of the positive rows minus mean of the others."""
    return x[positive].mean(axis=0) - x[~positive].mean(axis=0)


def differences(x: Floats, positive: Mask) -> Floats:
    """Each positive row minus the mean of the others, [n_positive, d]."""
    return x[positive] - x[~positive].mean(axis=0)


def leading_axes(rows: Floats, k: int) -> tuple[Floats, Floats]:
    """The k principal axes of rows about zero, [k, d], and the rows' summed squares along them, [k]; zeros beyond their rank.

    From the smaller of the two products of inner or outer kind, of which only the leading eigenvectors are computed.
    """
    n, d = rows.shape
    product = rows @ rows.T if n < d else rows.T @ rows
    size = len(product)
    squares, vectors = linalg.eigh(product, subset_by_index=[max(0, size - k), size - 1])
    squares, vectors = np.maximum(squares[::-1], 0), vectors[:, ::-1].T
    real = squares > 1e-10 * max(float(squares[0]), 1e-300)
    axes = np.zeros((k, d))
    found = vectors[real] @ rows / np.sqrt(squares[real])[:, None] if n < d else vectors[real]
    axes[: len(found)] = found
    return axes, np.pad(np.where(real, squares, 0.0), (0, k - len(squares)))


def principal(component: int) -> Method:
    """The k-th principal axis (from 0) of the differences, about zero and not about their mean, turned towards the emotion.

    So the displacement from the reference, which all texts share, counts as variance; centring, as PCA of paired differences
    would without the random order of pairs of Zou et al. (2023, Representation Engineering), removes just that.
    """

    def fit(x: Floats, positive: Mask) -> Floats:
        axis = leading_axes(differences(x, positive), component + 1)[0][component]
        return -axis if axis @ mean_difference(x, positive) < 0 else axis

    return fit


def lda(x: Floats, positive: Mask) -> Floats:
    """Mean difference whitened by the within-class covariance, shrunk towards the identity (Ledoit and Wolf 2004).

    With more dimensions than texts the covariance is never formed: by Woodbury, all is in the texts' inner products.
    """
    delta = mean_difference(x, positive)
    centred = np.where(positive[:, None], x - x[positive].mean(axis=0), x - x[~positive].mean(axis=0))
    gram = centred @ centred.T
    n, d = x.shape
    mean_variance = np.trace(gram) / (n * d)
    if mean_variance == 0:
        return delta
    squared = float((gram**2).sum()) / n**2
    spread = squared - d * mean_variance**2
    error = (float((np.diag(gram) ** 2).sum()) / n - squared) / n
    shrinkage = float(np.clip(error / spread, 1e-4, 1.0)) if spread > 0 else 1.0
    floor = shrinkage * mean_variance
    if shrinkage == 1.0:
        return delta / floor
    ridge = np.eye(n) * (n * floor / (1 - shrinkage))
    solved = linalg.solve(gram + ridge, centred @ delta, assume_a="pos")
    return (delta - centred.T @ solved) / floor


def logistic(x: Floats, positive: Mask) -> Floats:
    """Weights of a logistic regression with an L2 penalty |w|^2 / 2 on inputs scaled to unit mean variance (C = 1)."""
    centred = x - x.mean(axis=0)
    scale = float(np.sqrt(centred.var(axis=0).mean())) or 1.0
    inputs, signs = centred / scale, np.where(positive, 1.0, -1.0)

    def loss(parameters: Floats) -> tuple[float, Floats]:
        weights, bias = parameters[:-1], parameters[-1]
        margin = signs * (inputs @ weights + bias)
        pull = -signs * special.expit(-margin)
        value = np.logaddexp(0, -margin).sum() + weights @ weights / 2
        return float(value), np.append(inputs.T @ pull + weights, pull.sum())

    start = np.zeros(x.shape[1] + 1)
    return np.asarray(optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"ftol": 1e-9}).x[:-1])


def method_named(name: str) -> Method:
    """A method by name: mean_diff, pc1, pc2, ..., lda or logistic.

    Raises:
        UserError: if there is none of that name.
    """
    kind, number = parse_method(name)
    if kind == "pc":
        return principal(number - 1)
    return {"mean_diff": mean_difference, "lda": lda, "logistic": logistic}[kind]


class Contrast(NamedTuple):
    """An emotion and what it is compared with.

    Attributes:
        used: the rows of both.
        positive: which of these are the emotion's.
        paired: whether the emotion's rows come first, and the others after them in the order of their pairs.
    """

    emotion: str
    used: npt.NDArray[np.intp]
    positive: Mask
    paired: bool = False

    def displacements(self, x: Floats) -> tuple[Floats, Mask]:
        """Rows that principal axes are fitted on, as (x, positive): of pairs, each pair's difference, beside zero."""
        if not self.paired:
            return x, self.positive
        n = len(x) // 2
        return np.vstack([x[:n] - x[n:], np.zeros_like(x[:1])]), np.arange(n + 1) < n


def contrasts(labels: Sequence[str], reference: str | None) -> Iterator[Contrast]:
    """The contrast of each emotion: with the other sides of its pairs, if there are any; or with the reference; or with all others together.

    Raises:
        UserError: if an emotion or what it is compared with has fewer than two texts.
    """
    names = np.array(labels)
    for emotion in dict.fromkeys(labels):
        if emotion == reference or emotion.endswith(NEGATIVE):
            continue
        if len(others := np.flatnonzero(names == f"{emotion}{NEGATIVE}")):
            used = np.concatenate([np.flatnonzero(names == emotion), others])
            yield Contrast(emotion, used, np.arange(len(used)) < len(used) - len(others), paired=True)
            continue
        used = np.flatnonzero((names == emotion) | (names == reference)) if reference else np.arange(len(names))
        positive = names[used] == emotion
        for who, count in ((emotion, positive.sum()), (reference or f"other than {emotion}", (~positive).sum())):
            if count < 2:
                raise UserError(f"{count} text(s) of {who!r} to fit a direction on: at least 2 are needed")
        yield Contrast(emotion, used, positive)


@dataclass(frozen=True, eq=False)
class Fold:
    """One part of cross-fitting: the rows that are fitted on and those that are judged."""

    fit: npt.NDArray[np.intp]
    judge: npt.NDArray[np.intp]


def make_folds(positive: Mask, seed: int = 0) -> list[Fold]:
    """Up to five folds with both classes in each, every row judged once; with two texts of a class, two folds."""
    count = min(FOLDS, int(positive.sum()), int((~positive).sum()))
    part = np.zeros(len(positive), int)
    for value in (True, False):
        members = np.random.default_rng([seed, value]).permutation(np.flatnonzero(positive == value))
        part[members] = np.arange(len(members)) % count
    return [Fold(np.flatnonzero(part != k), np.flatnonzero(part == k)) for k in range(count)]


def make_pair_folds(groups: Sequence[int], seed: int = 0) -> list[Fold]:
    """Up to five folds of pairs, with all of a group in one; rows are the pairs' first sides, then their second.

    Args:
        groups: of each pair.
    """
    n, distinct = len(groups), np.unique(groups)
    count = min(FOLDS, len(distinct))
    part_of = dict(zip(np.random.default_rng([seed, 2]).permutation(distinct).tolist(), np.arange(len(distinct)) % max(count, 1), strict=True))
    part = np.array([part_of[group] for group in groups])
    rows = np.tile(part, 2)
    return [Fold(np.flatnonzero(rows != k), np.flatnonzero(rows == k)) for k in range(count)] if n and count > 1 else []


def judge(
    values: FloatArray,
    labels: Sequence[str],
    reference: str | None,
    methods: Sequence[str] = METHODS,
    seed: int = 0,
    groups: Sequence[int] = (),
) -> pd.DataFrame:
    """How well each method's direction tells texts apart that it was not fitted on, at every layer.

    Accuracy is balanced over the two classes; the threshold is midway between the projections of the fitted classes' means. AUC
    compares texts of one fold only, for directions of different folds have scales of their own (LeDell et al. 2015).

    Of pairs, accuracy is the share of held-out pairs whose positive side projects higher (ties count half; Wilson's interval).

    Args:
        values: float32 [n_texts, n_layers, d].
        groups: of each text, where there are pairs: texts of one group are held out together. Each has its own if none are given.

    Returns:
        emotion, method, layer, n_positive, n_negative, accuracy and auc, each with _low and _high of its 95% interval.
    """
    rows: list[dict[str, Any]] = []
    for contrast in contrasts(labels, reference):
        own = np.asarray(groups)[contrast.used[contrast.positive]] if len(groups) else np.arange(int(contrast.positive.sum()))
        folds = make_pair_folds(own.tolist(), seed) if contrast.paired else make_folds(contrast.positive, seed)
        if not folds:
            raise UserError(f"the pairs of {contrast.emotion!r} all share texts, so none can be judged by the others: give pairs of other texts")
        for method in methods:
            fit = method_named(method)
            for layer in range(values.shape[1]):
                x = values[contrast.used, layer].astype(np.float64)
                figures = _held_out_pairs(x, folds, fit, method) if contrast.paired else _held_out(x, contrast.positive, folds, fit)
                rows.append({"emotion": contrast.emotion, "method": method, "layer": layer, **figures})
    return pd.DataFrame(rows)


def of_contrast(fit: Method, method: str, contrast: Contrast, x: Floats) -> Floats:
    """A method's direction: principal axes of pairs are those of their differences; the others see both sides."""
    return fit(*contrast.displacements(x)) if method.startswith("pc") else fit(x, contrast.positive)


def _held_out_pairs(x: Floats, folds: Sequence[Fold], fit: Method, method: str) -> dict[str, float]:
    n = len(x) // 2
    wins = np.zeros(n)
    aucs = []
    for fold in folds:
        fitted = Contrast("", fold.fit, np.arange(len(fold.fit)) < len(fold.fit) // 2, paired=True)
        score = x[fold.judge] @ of_contrast(fit, method, fitted, x[fold.fit])
        half = len(fold.judge) // 2
        wins[fold.judge[:half]] = (np.sign(score[:half] - score[half:]) + 1) / 2
        aucs.append((half * half, auc(score, np.arange(2 * half) < half)))
    share = float(wins.mean())
    low, high = proportion_confint(share * n, n, alpha=1 - LEVEL, method="wilson")
    weights = sum(weight for weight, _ in aucs)
    accuracy = {"accuracy": share, "accuracy_low": float(low), "accuracy_high": float(high)}
    return {"n_positive": n, "n_negative": n, **accuracy, **auc_with_interval(sum(w * value for w, value in aucs) / weights, n, n)}


def _held_out(x: Floats, positive: Mask, folds: Sequence[Fold], fit: Method) -> dict[str, float]:
    pairs = wins = 0.0
    correct = np.zeros(len(x), bool)
    for fold in folds:
        weights = fit(x[fold.fit], positive[fold.fit])
        middle = (x[fold.fit][positive[fold.fit]].mean(axis=0) + x[fold.fit][~positive[fold.fit]].mean(axis=0)) / 2
        score, truth = (x[fold.judge] - middle) @ weights, positive[fold.judge]
        correct[fold.judge] = (score > 0) == truth
        weight = float(truth.sum()) * float((~truth).sum())
        pairs, wins = pairs + weight, wins + weight * auc(score, truth)
    return {
        "n_positive": int(positive.sum()),
        "n_negative": int((~positive).sum()),
        **balanced_accuracy(correct, positive),
        **auc_with_interval(wins / pairs, int(positive.sum()), int((~positive).sum())),
    }


def auc(score: Floats, positive: Mask) -> float:
    """The share of (positive, other) pairs in which the positive scores higher; ties count half."""
    n = int(positive.sum())
    ranks = float(stats.rankdata(score)[positive].sum())
    return (ranks - n * (n + 1) / 2) / (n * (len(score) - n))


def balanced_accuracy(correct: Mask, positive: Mask) -> dict[str, float]:
    """Mean of the two classes' accuracies, with an interval from their Wilson intervals (Zou and Donner 2008)."""
    shares = np.array([correct[positive].mean(), correct[~positive].mean()])
    counts = np.array([positive.sum(), (~positive).sum()])
    low, high = proportion_confint(shares * counts, counts, alpha=1 - LEVEL, method="wilson")
    mean = float(shares.mean())
    return {
        "accuracy": mean,
        "accuracy_low": max(0.0, mean - float(np.linalg.norm(shares - low)) / 2),
        "accuracy_high": min(1.0, mean + float(np.linalg.norm(high - shares)) / 2),
    }


def auc_with_interval(value: float, n_positive: int, n_negative: int) -> dict[str, float]:
    """An AUC with its 95% interval, which has a width at 0 and 1 too (Newcombe 2006, method 5).

    The ends are the values t at which |t - AUC| is z standard errors, with the variance of Hanley and McNeil at t.
    """
    z = float(stats.norm.ppf((1 + LEVEL) / 2))
    typical = (n_positive + n_negative) / 2 - 1

    def excess(t: float) -> float:
        variance = t * (1 - t) * (1 + typical * ((1 - t) / (2 - t) + t / (1 + t))) / (n_positive * n_negative)
        return abs(t - value) - z * float(np.sqrt(variance))

    inside = 1e-9  # at 0 and 1 themselves the standard error is 0
    low = float(optimize.brentq(excess, 0.0, value * (1 - inside))) if value > 0 else 0.0
    high = float(optimize.brentq(excess, value + (1 - value) * inside, 1.0)) if value < 1 else 1.0
    return {"auc": value, "auc_low": low, "auc_high": high}

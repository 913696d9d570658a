"""What tells broken text from whole: single figures and small models against two readers' labels, `python bench/broken_text.py`."""

from __future__ import annotations

import csv
import re
import zlib
from pathlib import Path

import numpy as np
from scipy import optimize, stats

LABELLED = Path(__file__).parents[1] / "tests" / "data" / "labelled_texts.csv"
FOLDS, PENALTY = 5, 1.0
REPEATS = ("repeated words", "repeated pairs", "repeated triples", "repeated runs of four", "compressed size")
LIKELIHOOD = ("mean NLL", "sd of NLL", "90% quantile of NLL", "share above 6 nats", "share below 0.2 nats")


def features(text: str, nll: np.ndarray) -> list[float]:
    """The figures of one text, in the order of REPEATS and LIKELIHOOD."""
    words = re.findall(r"\w+|[^\w\s]", text.lower())
    repeats = []
    for n in (1, 2, 3, 4):
        runs = list(zip(*[words[i:] for i in range(n)], strict=False))
        repeats.append(1 - len(set(runs)) / len(runs) if runs else 0.0)
    size = len(zlib.compress(text.encode())) / max(len(text.encode()), 1)
    tails = [float(np.quantile(nll, 0.9)), float((nll > 6).mean()), float((nll < 0.2).mean())]
    return [*repeats, min(size, 1.5), float(nll.mean()), float(nll.std()), *tails]


def auc(score: np.ndarray, positive: np.ndarray) -> float:
    """The share of pairs in which the positive scores higher."""
    n = int(positive.sum())
    return float((stats.rankdata(score)[positive].sum() - n * (n + 1) / 2) / (n * (len(positive) - n)))


def logistic(x: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Weights and bias of a penalised logistic regression on standardised figures."""
    signs = np.where(positive, 1.0, -1.0)

    def loss(p: np.ndarray) -> float:
        return float(np.logaddexp(0, -signs * (x @ p[:-1] + p[-1])).sum() + PENALTY * (p[:-1] ** 2).sum() / 2)

    return np.asarray(optimize.minimize(loss, np.zeros(x.shape[1] + 1)).x)


def cross_fitted(x: np.ndarray, positive: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Each text's score by a model that saw no text of its prompt."""
    score = np.zeros(len(x))
    for k in range(FOLDS):
        fit = fold != k
        mean, sd = x[fit].mean(axis=0), x[fit].std(axis=0) + 1e-9
        weights = logistic((x[fit] - mean) / sd, positive[fit])
        score[~fit] = (x[~fit] - mean) / sd @ weights[:-1] + weights[-1]
    return score


def main() -> None:
    """Prints an AUC per figure and model: all texts, greedy ones, sampled ones."""
    rows = list(csv.DictReader(LABELLED.open(encoding="utf-8")))
    x = np.array([features(row["continuation"], np.array(row["token_nll"].split(), float)) for row in rows])
    positive = np.array([int(row["fluency_a"]) + int(row["fluency_b"]) < 2 for row in rows])
    greedy = np.array([float(row["temperature"]) == 0 for row in rows])
    prompts = sorted({row["prompt"] for row in rows})
    order = np.random.default_rng(0).permutation(len(prompts))
    fold = np.array([order[prompts.index(row["prompt"])] % FOLDS for row in rows])
    found = {name: x[:, i] * (-1 if name == "compressed size" else 1) for i, name in enumerate((*REPEATS, *LIKELIHOOD))}
    found["repeats together"] = cross_fitted(x[:, : len(REPEATS)], positive, fold)
    found["repeats and NLL together"] = cross_fitted(x, positive, fold)
    print(f"{len(rows)} texts, {positive.mean():.0%} broken; AUC      all  greedy  sampled")
    for name, score in found.items():
        parts = [auc(score[part], positive[part]) for part in (greedy | True, greedy, ~greedy)]
        print(f"{name:<36}" + "".join(f"{value:8.3f}" for value in parts))


if __name__ == "__main__":
    main()

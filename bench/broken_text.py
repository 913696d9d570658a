"""What tells broken text from whole, `python bench/broken_text.py`: figures against two readers' labels, and the weights of `scoring.broken`.

Models are judged on texts of prompts that they did not see, and on another model's texts than those that they were fitted on.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from scipy import optimize

from emo_mlflow.scoring.broken import FEATURES, breaks_text, features
from emo_mlflow.statistics.agreement import auc

LABELLED = Path(__file__).parents[1] / "tests" / "data" / "labelled_texts.csv"
FOLDS, PENALTY = 5, 1.0


def interval(score: np.ndarray, positive: np.ndarray, n_bootstrap: int = 1000) -> tuple[float, float]:
    """95% percentile interval of the AUC over texts."""
    rng = np.random.default_rng(0)
    found = []
    while len(found) < n_bootstrap:
        chosen = rng.integers(len(score), size=len(score))
        if 0 < positive[chosen].sum() < len(chosen):
            found.append(auc(score[chosen], positive[chosen]))
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def cell(score: np.ndarray, positive: np.ndarray) -> str:
    """AUC and its interval, for the table."""
    low, high = interval(score, positive)
    return f"{auc(score, positive):.3f} [{low:.2f}, {high:.2f}]"


def logistic(x: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Weights and bias, in the units of x, of a logistic regression with a penalty on standardised weights."""
    mean, sd = x.mean(axis=0), x.std(axis=0) + 1e-9
    z, signs = (x - mean) / sd, np.where(positive, 1.0, -1.0)

    def loss(p: np.ndarray) -> float:
        return float(np.logaddexp(0, -signs * (z @ p[:-1] + p[-1])).sum() + PENALTY * (p[:-1] ** 2).sum() / 2)

    found = np.asarray(optimize.minimize(loss, np.zeros(x.shape[1] + 1)).x)
    weights = found[:-1] / sd
    return np.array([*weights, found[-1] - mean @ weights])


def predicted(x: np.ndarray, positive: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Each text's log-odds by a model that saw no text of its fold."""
    score = np.zeros(len(x))
    for k in np.unique(fold):
        model = logistic(x[fold != k], positive[fold != k])
        score[fold == k] = x[fold == k] @ model[:-1] + model[-1]
    return score


def conditions(probability: np.ndarray, positive: np.ndarray, n_prompts: int, baseline: float, rise: float, n: int = 4000) -> float:
    """How often a condition is said to break text, whose share of broken texts is truly `rise` above a baseline's, on so many prompts each."""
    rng = np.random.default_rng(0)

    def mean(share: float) -> np.ndarray:
        is_broken = rng.random((n, n_prompts)) < share
        ruined, whole = (rng.choice(probability[which], is_broken.shape) for which in (positive, ~positive))
        return np.where(is_broken, ruined, whole).mean(axis=1)

    return float(breaks_text(mean(baseline + rise) - mean(baseline)).mean())


def main() -> None:
    """Prints AUCs with intervals by part of the texts, and the weights."""
    rows = list(csv.DictReader(LABELLED.open(encoding="utf-8")))
    nll = [np.array(row["token_nll"].split(), float) for row in rows]
    x = features([row["continuation"] for row in rows], [n.mean() for n in nll], [n.std() for n in nll])
    positive = np.array([int(row["fluency_a"]) + int(row["fluency_b"]) < 2 for row in rows])
    model = np.array([row["model"] for row in rows])
    greedy = np.array([float(row["temperature"]) == 0 for row in rows])
    prompts = sorted({row["prompt"] for row in rows})
    order = np.random.default_rng(0).permutation(len(prompts))
    fold = np.array([order[prompts.index(row["prompt"])] % FOLDS for row in rows])
    scores = {name: x[:, i] for i, name in enumerate(FEATURES)}
    scores["mean NLL"] = np.array([n.mean() for n in nll])
    scores["repetition"] = predicted(x[:, :-1], positive, fold)
    scores["all, other prompts"] = predicted(x, positive, fold)
    if len(np.unique(model)) > 1:
        scores["all, another model"] = predicted(x, positive, np.unique(model, return_inverse=True)[1])
    parts = {"all": model == model, "greedy": greedy, "sampled": ~greedy} | {name: model == name for name in np.unique(model)}
    parts |= {f"{name}, sampled": (model == name) & ~greedy for name in np.unique(model)}
    print(", ".join(f"{name}: {part.sum()} texts, {positive[part].mean():.0%} broken" for name, part in parts.items()))
    for name, score in scores.items():
        print(f"{name:<20}" + "  ".join(cell(score[part], positive[part]) for part in parts.values()))
    odds = scores.get("all, another model", scores["all, other prompts"])
    probability = 1 / (1 + np.exp(-odds))
    for name, part in parts.items():
        found = (probability > 0.5)[part]
        print(f"{name}: mean probability {probability[part].mean():.2f}, broken {positive[part].mean():.2f}; above 0.5: "
              f"{found[positive[part]].mean():.0%} of the broken, {found[~positive[part]].mean():.0%} of the others")
    for n_prompts in (6, 18, 30):
        shares = {rise: conditions(probability, positive, n_prompts, 0.2, rise) for rise in (0.0, 0.1, 0.25, 0.5, 0.7)}
        said = ", ".join(f"{rise:.0%}: {share:.2f}" for rise, share in shares.items())
        print(f"{n_prompts} prompts: said to break text, by the true rise: {said}")
    fitted = logistic(x, positive)
    print("WEIGHTS =", tuple(round(float(w), 3) for w in fitted[:-1]), "BIAS =", round(float(fitted[-1]), 3))


if __name__ == "__main__":
    main()

"""How well the embedded scorer agrees with readers on steered text: `python bench/readers.py` prints it, `--write` puts it into the scorer's card."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from emo_mlflow.scoring.agreement import ALL, Agreement
from emo_mlflow.scoring.cards import CARD, dump_card, embedded_folder, load_card
from emo_mlflow.scoring.loading import load_scorer
from emo_mlflow.statistics.agreement import auc, calibration_error, clustered_interval, largest_spearman, spearman

LABELLED = Path(__file__).parents[1] / "tests" / "data" / "labelled_texts.csv"
DIGITS = 3
# Metric, question, and the side of 0 on which the metric's hint is.
HINTS = (
    ("goemotions.gratitude", "gratitude", 1),
    ("goemotions.anger", "anger", 1),
    ("goemotions.remorse", "apology", 1),
    ("sentiment.positive", "sentiment", 1),
    ("sentiment.negative", "sentiment", -1),
    ("politeness.polite", "politeness", 1),
    ("politeness.impolite", "politeness", -1),
)
RANKS = (
    ("sentiment.positive - sentiment.negative", "sentiment"),
    ("politeness.score", "politeness"),
    ("politeness.polite - politeness.impolite", "politeness"),
)


@dataclass(frozen=True, eq=False)
class Labelled:
    """Texts with their scores, by metric, and the mean of two readers' labels, by question."""

    scores: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    prompts: np.ndarray
    models: np.ndarray

    def score(self, metric: str) -> np.ndarray:
        """A metric, or a difference of two."""
        first, _, second = metric.partition(" - ")
        return self.scores[first] - self.scores[second] if second else self.scores[first]


def read(path: Path = LABELLED) -> Labelled:
    """The labelled texts, scored by the embedded scorer."""
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    scorer = load_scorer("embedded")
    values = scorer.score([row["continuation"] for row in rows]).astype(float)
    questions = dict.fromkeys(question for _, question, _ in HINTS)
    labels = {name: np.array([int(row[f"{name}_a"]) + int(row[f"{name}_b"]) for row in rows]) / 2 for name in questions}
    prompts, models = (np.array([row[name] for row in rows]) for name in ("prompt", "model"))
    return Labelled({name: values[:, i] for i, name in enumerate(scorer.metrics)}, labels, prompts, models)


def agreements(found: Labelled, n_bootstrap: int) -> tuple[Agreement, ...]:
    """Every metric of HINTS and RANKS on all texts and on each model's; the prompt is what the bootstrap draws."""
    rows = []
    for name in (ALL, *dict.fromkeys(map(str, found.models))):
        part = np.flatnonzero((found.models == name) | (name == ALL))
        for metric, question, side in HINTS:
            score, positive = found.score(metric)[part], side * found.labels[question][part] > 0
            row = Agreement(
                metric, question, "auc", name, len(part), auc(score, positive), 0.0, 0.0, int(positive.sum()),
                float(score[positive].mean()), float(score[~positive].mean()), calibration_error(score, positive),
            )  # fmt: skip
            rows.append(with_interval(row, lambda i, s=score, p=positive: auc(s[i], p[i]), found.prompts[part], n_bootstrap))
        for metric, question in RANKS:
            score, label = found.score(metric)[part], found.labels[question][part]
            row = Agreement(metric, question, "spearman", name, len(part), spearman(score, label), 0.0, 0.0, at_most=largest_spearman(label))
            rows.append(with_interval(row, lambda i, s=score, p=label: spearman(s[i], p[i]), found.prompts[part], n_bootstrap))
    return tuple(rows)


def with_interval(row: Agreement, statistic: Callable[[np.ndarray], float], prompts: np.ndarray, n_bootstrap: int) -> Agreement:
    """The row with its interval, and every figure rounded."""
    low, high = clustered_interval(statistic, prompts, n_bootstrap)
    filled = replace(row, low=low, high=high)
    return replace(filled, **{name: round(value, DIGITS) for name, value in vars(filled).items() if isinstance(value, float)})


def main() -> None:
    """Prints the table, and writes the card if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the figures into the embedded scorer's card")
    rows = agreements(read(), 2000)
    for row in rows:
        more = f", of {row.at_most:.2f} at most" if row.positives is None else (
            f", {row.positives} with a hint{' (too few)' if row.too_few else ''}; mean {row.in_hits:.2f} in them, {row.elsewhere:.2f} elsewhere, "
            f"calibration error {row.calibration_error:.3f}"
        )  # fmt: skip
        print(f"{row.texts:<22} {row.metric:<40} {row.measure:<9} {row.value:.3f} [{row.low:.2f}, {row.high:.2f}]  n {row.n}{more}")
    if parser.parse_args().write:
        path = embedded_folder() / CARD
        path.write_text(dump_card(replace(load_card(path), readers=rows)), encoding="utf-8")


if __name__ == "__main__":
    main()

"""What counts as broken text, held to what two readers called broken."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from emo_mlflow.scoring.broken import broken

LABELLED = Path(__file__).parents[1] / "data" / "labelled_texts.csv"


def test_the_labels_are_there_and_two_readers_agree():
    rows = list(csv.DictReader(LABELLED.open(encoding="utf-8")))
    assert len(rows) == 360 and len({row["continuation"] for row in rows}) == 360
    first, second = (np.array([int(row[f"fluency_{reader}"]) for row in rows]) for reader in "ab")
    assert (first == second).mean() > 0.9 and np.abs(first - second).max() <= 1
    assert all(len(row["token_nll"].split()) == int(row["n_tokens"]) for row in rows)


def test_broken_greedy_text_is_seen_as_stated():
    """The figures of the comment beside the limit; sampled word salad is not seen, which the page on studies says."""
    rows = [row for row in csv.DictReader(LABELLED.open(encoding="utf-8")) if float(row["temperature"]) == 0]
    readers = np.array([int(row["fluency_a"]) + int(row["fluency_b"]) < 2 for row in rows])
    found = broken([row["continuation"] for row in rows]) > 0
    assert round(found[readers].mean(), 2) == 0.83 and round(found[~readers].mean(), 2) == 0.26


def test_loops_and_short_texts():
    assert broken(["I was happy. " * 5, "The boat came in at nine.", "", "word"]).tolist() == [1.0, 0.0, 0.0, 0.0]

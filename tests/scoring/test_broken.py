"""How well `broken` tells what two readers called broken, on texts of another model than the one that its weights were fitted on."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest

from emo_mlflow.scoring.broken import BIAS, WEIGHTS, breaks_text, broken, features

ROOT = Path(__file__).parents[2]
LABELLED = ROOT / "tests" / "data" / "labelled_texts.csv"
SMOLLM, GEMMA = "SmolLM2-135M-Instruct", "Gemma-3-270M"


@pytest.fixture(scope="module")
def rows():
    return list(csv.DictReader(LABELLED.open(encoding="utf-8")))


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "bench"))
        import broken_text

        yield broken_text
    sys.modules.pop("broken_text", None)


def figures(rows):
    nll = [np.array(row["token_nll"].split(), float) for row in rows]
    return [row["continuation"] for row in rows], [n.mean() for n in nll], [n.std() for n in nll]


def called_broken(rows):
    return np.array([int(row["fluency_a"]) + int(row["fluency_b"]) < 2 for row in rows])


def test_the_labels_are_there_and_two_readers_agree(rows):
    assert len(rows) == 848 and len({(row["prompt"], row["continuation"]) for row in rows}) == 848
    assert not {row["prompt"] for row in rows if row["model"] == GEMMA} & {row["prompt"] for row in rows if row["model"] == SMOLLM}
    first, second = (np.array([int(row[f"fluency_{reader}"]) for row in rows]) for reader in "ab")
    assert (first == second).mean() > 0.9 and np.abs(first - second).max() <= 1
    assert all(len(row["token_nll"].split()) == int(row["n_tokens"]) for row in rows)


def test_broken_text_of_another_model_is_told_from_whole_text(rows, bench):
    """Fitted on one model's texts, judged on sampled and greedy texts of another model on other prompts."""
    fit, judged = ([row for row in rows if row["model"] == name] for name in (SMOLLM, GEMMA))
    model = bench.logistic(features(*figures(fit)), called_broken(fit))
    score = features(*figures(judged)) @ model[:-1] + model[-1]
    positive, sampled = called_broken(judged), np.array([float(row["temperature"]) > 0 for row in judged])
    assert bench.auc(score, positive) > 0.95 and bench.auc(score[sampled], positive[sampled]) > 0.95
    mean_nll = np.array(figures(judged)[1])
    assert bench.auc(mean_nll, positive) < 0.5 < bench.auc(mean_nll[sampled], positive[sampled]) < 0.7  # what stood there before


def test_the_weights_are_those_of_the_labels(rows, bench):
    fitted = bench.logistic(features(*figures(rows)), called_broken(rows))
    np.testing.assert_allclose(fitted, [*WEIGHTS, BIAS], atol=2e-3)


def test_probabilities_are_as_often_right_as_they_say(rows):
    probability, positive = broken(*figures(rows)), called_broken(rows)
    assert probability.mean() == pytest.approx(positive.mean(), abs=0.01)
    for low, high in ((0.0, 0.1), (0.1, 0.5), (0.5, 0.9), (0.9, 1.0)):
        part = (probability >= low) & (probability < high)
        assert part.sum() > 50 and probability[part].mean() == pytest.approx(positive[part].mean(), abs=0.12)


def test_a_loop_and_word_salad_are_broken_and_a_sentence_is_not():
    texts = ["I was happy. I was happy. I was happy. I was happy. I was happy.", "of lantern ulously and 7 (( the_ were", "The boat came in at nine."]
    found = broken(texts, [0.4, 6.0, 2.0], [0.8, 4.0, 1.5])
    assert found[0] > 0.9 and found[1] > 0.7 and found[2] < 0.1
    assert np.isnan(broken(["word"], [np.nan], [np.nan])).all() and broken([], [], []).shape == (0,)


def test_a_condition_breaks_text_by_how_much_more_is_broken():
    assert breaks_text([0.22, 0.24, -0.5, np.nan]).tolist() == [False, True, False, False]

"""Corrected effects cover the truth as often as they say, with a scorer that is biased where it matters."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from emo_mlflow.statistics.prediction_powered import Errors, corrected_difference, plain_difference

N_CONDITIONS, N_LABELLED = 6, 40


def simulated(rng: np.random.Generator, n_prompts: int, truth: float) -> tuple[np.ndarray, Errors, Errors]:
    """A sweep's scores and the errors of its labelled texts.

    Labels are of a prompt's own level, so texts of one prompt are alike. The scorer sees half of a steered text's change, and calls every
    steered text 0.2 higher, so it sees a change where there is none. It is noisier on steered texts too.
    """
    level = rng.normal(scale=0.5, size=(n_prompts, 1))
    labels = {"baseline": level + rng.normal(scale=0.5, size=(n_prompts, 1))}
    change = truth + rng.normal(scale=0.4, size=(n_prompts, 1))
    labels["patched"] = level + change + rng.normal(scale=0.5, size=(n_prompts, N_CONDITIONS))
    scores = {"baseline": 0.7 * labels["baseline"] + rng.normal(scale=0.2, size=(n_prompts, 1))}
    scores["patched"] = 0.2 + 0.5 * labels["patched"] + rng.normal(scale=0.4, size=(n_prompts, N_CONDITIONS))
    errors = {}
    for arm, values in labels.items():
        cells = rng.permutation(values.size)[: min(N_LABELLED, values.size)]
        off = (values - scores[arm]).ravel()[cells]
        errors[arm] = Errors(off, cells // values.shape[1])
    differences = scores["patched"].mean(axis=1) - scores["baseline"][:, 0]
    return differences, errors["patched"], errors["baseline"]


@pytest.mark.parametrize("n_prompts", [30, 60])
def test_corrected_effects_cover_and_plain_ones_do_not(n_prompts: int):
    """In 4,000 sweeps; chance alone moves a coverage of 95% by 0.7 points."""
    rng, truth, n_sweeps = np.random.default_rng(n_prompts), 0.0, 4000
    covered, plain, means = 0, 0, []
    for _ in range(n_sweeps):
        differences, patched, baseline = simulated(rng, n_prompts, truth)
        found, naive = corrected_difference(differences, patched, baseline), plain_difference(differences)
        covered += found.low <= truth <= found.high
        plain += naive.low <= truth <= naive.high
        means.append(found.mean)
    assert 0.935 <= covered / n_sweeps <= 0.965
    assert plain / n_sweeps < 0.75 and np.mean(means) == pytest.approx(truth, abs=4 * np.std(means) / np.sqrt(n_sweeps))


def test_with_every_text_labelled_it_is_the_labels_own_interval():
    """Guards: a score's error counted as independent of the score, which makes the interval of labelled texts too wide or too short."""
    rng = np.random.default_rng(0)
    labels, scores = rng.normal(size=(2, 25)), rng.normal(size=(2, 25))
    prompts = np.arange(25)
    found = corrected_difference(scores[1] - scores[0], *(Errors(labels[i] - scores[i], prompts) for i in (1, 0)))
    expected = stats.ttest_1samp(labels[1] - labels[0], 0).confidence_interval()
    assert (found.mean, found.low, found.high) == pytest.approx(((labels[1] - labels[0]).mean(), *expected))


def test_few_labels_correct_nothing():
    few, many = Errors(np.ones(5), np.arange(5)), Errors(np.ones(20), np.arange(20))
    assert np.isnan(corrected_difference(np.arange(30.0), few, many).mean)
    assert np.isnan(corrected_difference(np.arange(30.0), many, few).mean)
    assert np.isnan(plain_difference(np.array([1.0])).low) and plain_difference(np.array([1.0])).mean == 1

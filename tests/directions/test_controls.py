"""Random directions as a study draws them: as the stream varies, and as fitting to shuffled labels gives them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from tiny_models import tiny_model

from emo_mlflow.directions.activations import TOKENS_PER_DIMENSION, deviations, whole
from emo_mlflow.directions.controls import (
    FEWEST_TEXTS,
    check_controls,
    covariance_control,
    isotropic_control,
    shuffled_control,
)
from emo_mlflow.directions.fitting import choose_direction, injected
from emo_mlflow.directions.readouts import Contrast, contrasts
from emo_mlflow.errors import UserError
from emo_mlflow.models.blocks import BlockStack

TEXTS = [(0, 5, 6, 7), (0, 9, 8), (0, 5, 9, 11, 12, 13), (0, 40, 41, 42)]


@pytest.mark.parametrize("site", ["resid_pre", "resid_post"])
def test_the_streams_covariance_is_that_of_single_tokens(site):
    """Guards: means of texts, which vary less than the stream and otherwise; the document-start token, which is tens of times as long."""
    model = tiny_model("llama")
    found = deviations(BlockStack(model), whole(TEXTS), site, [2, 1])
    assert list(found) == [1, 2]
    for layer, rows in found.items():
        with torch.no_grad():
            states = [model(torch.tensor([tokens]), output_hidden_states=True).hidden_states[layer + (site == "resid_post")] for tokens in TEXTS]
        own = np.concatenate([state[0, 1:].numpy() for state in states])
        np.testing.assert_allclose(rows.T @ rows, np.cov(own.T, bias=True) * len(own), rtol=1e-3, atol=1e-4 * (own**2).max())


def test_many_texts_are_thinned_evenly():
    model = tiny_model("llama")
    stack = BlockStack(model)
    texts = [(0, 5 + i % 40, 7, 9) for i in range(400)]
    (rows,) = deviations(stack, whole(texts), "resid_pre", [1]).values()
    wanted = TOKENS_PER_DIMENSION * stack.d_model
    assert wanted <= len(rows) < 2 * wanted


def test_a_draw_has_the_covariance_of_the_states_and_is_one_choice_through_all_layers():
    rng = np.random.default_rng(0)
    states = (rng.normal(size=(300, 6)) * [5, 2, 1, 1, 0.5, 0.1]).astype(np.float32)
    states -= states.mean(axis=0)
    draws = np.stack([covariance_control(states, seed=1, draw=i) for i in range(4000)]) / np.sqrt(300)
    error = np.outer(states.std(axis=0), states.std(axis=0)) * np.sqrt(2 / len(draws))  # of Monte Carlo, at most
    assert (np.abs(np.cov(draws.T) - np.cov(states.T)) < 4.5 * error).all()
    turned = covariance_control(states[:, ::-1], seed=1, draw=3)
    np.testing.assert_array_equal(turned[::-1], covariance_control(states, seed=1, draw=3))
    assert isotropic_control(6, seed=1, draw=3).tolist() == isotropic_control(6, seed=1, draw=3).tolist()


METHODS = ["mean_diff", "pc1", "lda", "logistic", "subspace:2"]


@pytest.mark.parametrize("choice", METHODS)
def test_a_shuffled_control_is_fitted_as_the_direction_is(choice):
    """Without shuffling, the same function gives the emotion's own direction; with it, that of the shuffled labels."""
    rng = np.random.default_rng(1)
    labels = ["joy"] * 8 + ["rage"] * 5 + ["neutral"] * 9
    values = rng.normal(size=(len(labels), 1, 12)).astype(np.float32)
    own = choose_direction(choice, values, labels, "neutral", "resid_pre")["joy"]
    vector = own.vectors[0] if own.basis is None else own.basis[0].T @ (own.basis[0] @ own.vectors[0])
    used = np.array([i for i, name in enumerate(labels) if name != "rage"])
    np.testing.assert_allclose(injected(choice, values[used, 0].astype(float), Contrast("joy", used, used < 8)), vector, rtol=1e-4, atol=1e-5)
    drawn = shuffled_control(choice, values[:, 0], labels, "neutral", emotion="joy", seed=0, draw=0)
    assert not np.allclose(drawn, vector, atol=0.05)
    again = shuffled_control(choice, values[:, 0], labels, "neutral", emotion="joy", seed=0, draw=0)
    np.testing.assert_array_equal(again, drawn)


@pytest.mark.parametrize("choice", METHODS)
def test_a_direction_of_labels_that_say_nothing_is_one_of_its_controls(choice):
    """Guards: mean differences as controls of another method, which it differs from whatever the labels are. The rank among nine is uniform."""
    labels = ["joy"] * 12 + ["neutral"] * 12
    ranks = []
    for seed in range(300):
        values = (np.random.default_rng(seed).normal(size=(24, 8)) * [6, 3, 2, 1, 1, 1, 0.5, 0.2]).astype(np.float32)
        own = injected(choice, values.astype(float), next(contrasts(labels, "neutral")))
        drawn = [shuffled_control(choice, values, labels, "neutral", emotion="joy", seed=seed, draw=i) for i in range(9)]
        spread = [abs(v[0]) / np.linalg.norm(v) for v in (own, *drawn)]
        ranks.append(sum(value >= spread[0] for value in spread[1:]))
    assert stats.chisquare(np.bincount(ranks, minlength=10)).pvalue > 0.001


def test_controls_that_cannot_be_drawn_are_refused():
    few = ["joy"] * 6 + ["neutral"] * 9
    check_controls(["isotropic"], few, "neutral")
    with pytest.raises(UserError, match=f"controls=shuffled needs {FEWEST_TEXTS} texts of joy and neutral to fit on, and there are 15: give 5 more"):
        check_controls(["isotropic", "shuffled"], few, "neutral")
    with pytest.raises(UserError, match=f"controls=covariance needs {FEWEST_TEXTS} texts to fit on, and there are 15: give 5 more"):
        check_controls(["covariance"], few, "neutral")

"""Directions and read-outs: what is averaged, what is held out, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg, optimize, stats
from tiny_models import FAMILIES, tiny_model

from emo_mlflow.directions.activations import text_means, token_states, whole
from emo_mlflow.directions.controls import random_control
from emo_mlflow.directions.files import check_directions, load_directions, save_directions
from emo_mlflow.directions.fitting import choose_direction, fit_directions
from emo_mlflow.directions.readouts import (
    auc,
    auc_with_interval,
    balanced_accuracy,
    judge,
    lda,
    logistic,
    make_folds,
    mean_difference,
)
from emo_mlflow.errors import UserError
from emo_mlflow.models.blocks import BlockStack
from emo_mlflow.settings.direction_choice import parse_direction
from emo_mlflow.types import Direction, Prompt

TEXTS = [(0, 5, 6, 7), (0, 9, 8), (0, 5, 9, 11, 12, 13), (0, 40, 41, 42)]


def streams(model, tokens: tuple[int, ...]) -> list[np.ndarray]:
    """The residual stream [q, d] before each block and after the last, by hooks of its own and one text at a time."""
    stack = BlockStack(model)
    seen: list[np.ndarray] = []
    handles = [
        block.register_forward_pre_hook(lambda module, args: seen.append(args[0][0].numpy())) for block in stack.blocks
    ]
    last = stack.blocks[-1].register_forward_hook(
        lambda module, args, out: seen.append((out[0] if isinstance(out, tuple) else out)[0].numpy())
    )
    with torch.no_grad():
        model(input_ids=torch.tensor([tokens]), use_cache=False)
    for handle in (*handles, last):
        handle.remove()
    return seen


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("site", ["resid_pre", "resid_post"])
def test_means_are_of_the_texts_own_tokens(family, site):
    """Guards: padding or the document-start token in a mean, and directions measured a layer beside where they are injected."""
    model = tiny_model(family)
    stack = BlockStack(model)
    for aggregation, pool in (("mean", lambda h: h[1:].mean(axis=0)), ("last", lambda h: h[-1])):
        means, norms = text_means(stack, whole(TEXTS), site, aggregation)
        for i, tokens in enumerate(TEXTS):
            expected = streams(model, tokens)[site == "resid_post" :][: stack.n_layers]
            np.testing.assert_allclose(means[i], [pool(h) for h in expected], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(
                norms[i], [np.linalg.norm(h[1:], axis=1).mean() for h in expected], rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_weighting(family):
    """Guards: weights of another layer, of the document-start token, or left in a fused implementation that gives none."""
    model = tiny_model(family)
    stack = BlockStack(model)
    usual = model.config._attn_implementation
    means, _ = text_means(stack, whole(TEXTS), "resid_pre", "attention")
    assert model.config._attn_implementation == usual
    model.set_attn_implementation("eager")
    for i, tokens in enumerate(TEXTS):
        with torch.no_grad():
            attentions = model(input_ids=torch.tensor([tokens]), output_attentions=True, use_cache=False).attentions
        for layer, (hidden, weights) in enumerate(zip(streams(model, tokens), attentions, strict=False)):
            own = weights[0, :, -1, 1:].mean(dim=0).numpy()
            np.testing.assert_allclose(means[i, layer], own / own.sum() @ hidden[1:], rtol=1e-3, atol=1e-3)


def test_token_states_picks_positions_of_each_text():
    """Guards: words of one text filed under another when lengths are mixed."""
    model = tiny_model("llama")
    positions = [[1, 3], [2], [1, 2, 5], [3]]
    states = token_states(BlockStack(model), TEXTS, positions, "resid_pre")
    expected = [np.stack([h[p] for h in streams(model, t)[:4]]) for t, ps in zip(TEXTS, positions, strict=True) for p in ps]
    np.testing.assert_allclose(states, expected, rtol=1e-4, atol=1e-4)


def planted(n: int = 40, d: int = 24, shift: float = 3.0, seed: int = 0) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Activations [2n, 2, d] with an emotion's shift along one direction at layer 1 and none at layer 0."""
    rng = np.random.default_rng(seed)
    direction = linalg.orth(rng.normal(size=(d, 1)))[:, 0]
    values = rng.normal(size=(2 * n, 2, d))
    values[:n, 1] += shift * direction
    return values.astype(np.float32), ["joy"] * n + ["neutral"] * n, direction


@pytest.mark.parametrize("choice", ["mean_diff", "pc1", "lda", "logistic", "subspace:3"])
def test_every_choice_finds_a_planted_direction(choice):
    """Guards: a component's arbitrary sign or length reaching the sweep as a dose."""
    values, labels, direction = planted()
    found = choose_direction(choice, values, labels, "neutral", "resid_pre")["joy"]
    difference = choose_direction("mean_diff", values, labels, "neutral", "resid_pre")["joy"].vectors
    cosine = found.vectors[1] @ direction / np.linalg.norm(found.vectors[1])
    assert cosine > 0.75
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), np.linalg.norm(difference, axis=1), rtol=1e-5)
    if choice == "subspace:3":
        assert found.basis is not None and found.basis.shape == (2, 3, 24)
        np.testing.assert_allclose(found.basis @ found.basis.swapaxes(1, 2), [np.eye(3)] * 2, atol=1e-5)
        assert np.linalg.norm(found.basis[1] @ direction) > 0.9


def test_without_a_reference_each_emotion_is_compared_with_the_others():
    """Guards: data sets that have no neutral texts."""
    values, labels, _direction = planted()
    found = choose_direction("mean_diff", values, [x.replace("neutral", "fear") for x in labels], None, "resid_pre")
    np.testing.assert_allclose(found["joy"].vectors, -found["fear"].vectors, atol=1e-6)


@pytest.mark.parametrize("text", ["pc0", "pc", "subspace", "subspace:0", "mean_diff:2", "svm", "subspace:x", ""])
def test_unknown_directions_are_refused(text):
    """Guards: a typo that falls back to some default."""
    with pytest.raises(UserError, match="is not known"):
        parse_direction(text)


def test_too_few_texts_are_refused():
    """Guards: a direction from one text, or more components than texts."""
    values, labels, _ = planted(4)
    with pytest.raises(UserError, match="1 text.* at least 2"):
        choose_direction("mean_diff", values[3:], labels[3:], "neutral", "resid_pre")
    with pytest.raises(UserError, match="k can be 1 to 4"):
        choose_direction("subspace:5", values, labels, "neutral", "resid_pre")
    with pytest.raises(UserError, match="k can be 1 to 4"):
        choose_direction("pc5", values, labels, "neutral", "resid_pre")


def test_noise_reads_at_chance_though_it_can_be_separated():
    """Guards: directions judged on the texts that they were fitted on, which with d > n always looks perfect."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=(120, 4, 300)).astype(np.float32)
    labels = ["joy"] * 60 + ["neutral"] * 60
    table = judge(values, labels, "neutral")
    assert table["accuracy"].between(0.3, 0.7).all() and abs(table["accuracy"].mean() - 0.5) < 0.06
    x, positive = values[:, 0].astype(float), np.array(labels) == "joy"
    assert auc(x @ lda(x, positive), positive) > 0.99


def test_read_out_of_a_planted_direction():
    """Guards: folds whose scores are mixed up, and a figure that stays at chance where the direction is real."""
    values, labels, _ = planted(100, shift=4.0)
    table = judge(values, labels, "neutral").set_index(["method", "layer"])
    assert (table.xs(1, level="layer")["accuracy"] > 0.93).all()
    best = stats.norm.cdf(4 / np.sqrt(2))
    assert (abs(table.xs(1, level="layer")["auc"] - best) < 0.03).all()
    assert (table["accuracy_low"] <= table["accuracy"]).all() and (table["auc"] <= table["auc_high"]).all()
    assert (table["n_positive"] == 100).all()


@given(st.integers(2, 30), st.integers(2, 30), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_folds_judge_every_row_once_without_fitting_on_it(n, m, seed):
    """Guards: rows left out, judged twice, or in both parts; a fold without one of the classes."""
    positive = np.array([True] * n + [False] * m)
    folds = make_folds(positive, seed)
    judged = np.concatenate([fold.judge for fold in folds])
    assert sorted(judged) == list(range(n + m))
    for fold in folds:
        assert not set(fold.fit) & set(fold.judge)
        assert 0 < positive[fold.fit].sum() < len(fold.fit) and 0 < positive[fold.judge].sum() < len(fold.judge)


def test_lda_is_the_whitened_difference():
    """Guards the algebra that never forms the covariance, in either case of n and d."""
    for n, d in ((30, 50), (200, 8)):
        rng = np.random.default_rng(n)
        x = rng.normal(size=(n, d)) * np.linspace(0.2, 3, d)
        positive = np.arange(n) < n // 3
        x[positive, 0] += 1
        w = lda(x, positive)
        centred = np.where(positive[:, None], x - x[positive].mean(axis=0), x - x[~positive].mean(axis=0))
        covariance = centred.T @ centred / n
        mean = np.trace(covariance) / d
        spread = ((covariance - mean * np.eye(d)) ** 2).sum()
        error = sum(((np.outer(row, row) - covariance) ** 2).sum() for row in centred) / n**2
        shrinkage = min(1, error / spread)
        full = (1 - shrinkage) * covariance + shrinkage * mean * np.eye(d)
        np.testing.assert_allclose(w, linalg.solve(full, mean_difference(x, positive)), rtol=1e-8)


def test_lda_sees_past_a_noisy_dimension():
    """Guards the reason to whiten: one dimension of huge variance hides the emotion from the mean difference."""
    values, labels, _ = planted(100, shift=3.0)
    values[:, :, 0] *= 60
    table = judge(values[:, 1:], labels, "neutral", ["mean_diff", "lda"]).set_index("method")
    assert table.loc["mean_diff", "auc"] < 0.8 and table.loc["lda", "auc"] > 0.93


def test_logistic_is_at_its_optimum():
    """Guards: a solver stopped early, whose direction would be the starting point's."""
    values, labels, _ = planted(60, shift=1.0)
    x, positive = values[:, 1].astype(float), np.array(labels) == "joy"
    w = logistic(x, positive)
    centred = x - x.mean(axis=0)
    inputs = centred / np.sqrt(centred.var(axis=0).mean())
    # At the optimum w = sum of residuals times inputs, for the intercept at which the residuals sum to zero.
    shift = optimize.brentq(lambda b: (positive - 1 / (1 + np.exp(-(inputs @ w + b)))).sum(), -20, 20)
    residual = positive - 1 / (1 + np.exp(-(inputs @ w + shift)))
    np.testing.assert_allclose(inputs.T @ residual, w, atol=2e-2 * np.abs(w).max())


@given(st.lists(st.integers(0, 6), min_size=2, max_size=12), st.lists(st.integers(0, 6), min_size=2, max_size=12))
@settings(max_examples=40, deadline=None)
def test_auc_is_mann_whitney(first, second):
    """Guards: ties that count whole or not at all."""
    score = np.array([*first, *second], float)
    positive = np.arange(len(score)) < len(first)
    expected = stats.mannwhitneyu(first, second).statistic / (len(first) * len(second))
    assert auc(score, positive) == pytest.approx(expected)


@pytest.mark.parametrize(("n", "shift"), [(25, 0.8), (25, 2.4), (60, 0.0)])
def test_auc_intervals_cover(n, shift):
    """Guards: an interval of no width at AUC = 1, and one that promises more than it holds."""
    rng = np.random.default_rng(3)
    truth = stats.norm.cdf(shift / np.sqrt(2))
    covered = []
    for _ in range(600):
        score = np.concatenate([rng.normal(shift, 1, n), rng.normal(0, 1, n)])
        found = auc_with_interval(auc(score, np.arange(2 * n) < n), n, n)
        covered.append(found["auc_low"] <= truth <= found["auc_high"])
    assert 0.925 <= np.mean(covered) <= 0.985
    assert auc_with_interval(1.0, 20, 20)["auc_low"] < 0.95 and auc_with_interval(0.0, 20, 20)["auc_high"] > 0.05


def test_accuracy_intervals_cover():
    """Guards: the same for balanced accuracy, with classes of different size."""
    rng = np.random.default_rng(4)
    positive = np.arange(100) < 30
    covered = []
    for _ in range(600):
        correct = np.where(positive, rng.random(100) < 0.9, rng.random(100) < 0.8)
        found = balanced_accuracy(correct, positive)
        covered.append(found["accuracy_low"] <= 0.85 <= found["accuracy_high"])
    assert 0.925 <= np.mean(covered) <= 0.985
    perfect = balanced_accuracy(np.ones(100, bool), positive)
    assert perfect["accuracy"] == 1 and perfect["accuracy_low"] < 0.98 and perfect["accuracy_high"] == 1


def test_fit_on_a_model_reports_held_out_accuracy_and_refuses_empty_texts():
    """Guards: the sweep's own fit, which uses the same read-out, and a text without a token of its own."""
    stack = BlockStack(tiny_model("gpt2"))
    rng = np.random.default_rng(0)
    prompts = [Prompt(str(i), "joy" if i % 2 else "neutral", "fit") for i in range(12)]
    tokens = [(0, *rng.integers(10, 60 if i % 2 else 200, 6).tolist()) for i in range(12)]
    fit = fit_directions(stack, prompts, whole(tokens), "resid_post", "neutral", "subspace:2")
    assert fit.directions["joy"].basis is not None and fit.accuracy["joy"].shape == (4,)
    assert fit.residual_norms.shape == (4,) and (fit.residual_norms > 0).all()
    with pytest.raises(UserError, match="too short"):
        fit_directions(stack, prompts, whole([(0,), *tokens[1:]]), "resid_post", "neutral")


def test_files_keep_everything(tmp_path: Path):
    """Guards: a subspace, site or emotion lost between the run that fitted it and the sweep that injects it."""
    values, labels, _ = planted()
    directions = choose_direction("subspace:2", values, labels, "neutral", "resid_post")
    save_directions(tmp_path / "d.safetensors", directions, {"model_fingerprint": "abc"})
    read, metadata = load_directions(tmp_path / "d.safetensors")
    assert metadata["model_fingerprint"] == "abc" and read["joy"].site == "resid_post"
    np.testing.assert_array_equal(read["joy"].vectors, directions["joy"].vectors)
    np.testing.assert_array_equal(read["joy"].basis, directions["joy"].basis)
    with pytest.raises(UserError, match="cannot read"):
        load_directions(tmp_path / "none.safetensors")


def test_directions_of_another_model_or_site_are_refused():
    """Guards: vectors injected where they mean nothing."""
    direction = Direction("joy", "resid_pre", np.ones((2, 4), np.float32))
    given = {"emotions": ["joy"], "site": "resid_pre", "shape": (2, 4), "fingerprint": "abc"}
    check_directions({"joy": direction}, {"model_fingerprint": "abc"}, **given)
    for change, match in (
        ({"emotions": ["fear"]}, "no direction for fear; there are joy"),
        ({"site": "resid_post"}, "measured at resid_pre"),
        ({"shape": (3, 4)}, "3 layers of width 4"),
        ({"fingerprint": "xyz"}, "another model"),
    ):
        with pytest.raises(UserError, match=match):
            check_directions({"joy": direction}, {"model_fingerprint": "abc"}, **(given | change))
    broken = replace(direction, vectors=np.full((2, 4), np.nan, np.float32))
    with pytest.raises(UserError, match="not finite"):
        check_directions({"joy": broken}, {}, **given)


def test_random_controls_have_the_norm_and_rank_of_what_they_control_for():
    """Guards: controls that are weaker than the direction, equal to each other, or different between machines."""
    rng = np.random.default_rng(0)
    vector = rng.normal(size=50).astype(np.float32)
    basis = linalg.orth(rng.normal(size=(50, 3))).T.astype(np.float32)
    draws = [random_control(vector, None, seed=1, emotion="joy", layer=2, draw=i)[0] for i in range(200)]
    np.testing.assert_allclose(np.linalg.norm(draws, axis=1), np.linalg.norm(vector), rtol=1e-5)
    cosines = np.array(draws) @ vector / np.linalg.norm(vector) ** 2
    assert abs(cosines.mean()) < 0.05 and abs(cosines.std() - 1 / np.sqrt(50)) < 0.03
    again = random_control(vector, None, seed=1, emotion="joy", layer=2, draw=7)[0]
    np.testing.assert_array_equal(again, draws[7])
    drawn, frame = random_control(vector, basis, seed=1, emotion="joy", layer=2, draw=0)
    assert frame is not None and frame.shape == (3, 50)
    np.testing.assert_allclose(np.linalg.norm(drawn), np.linalg.norm(basis @ vector), rtol=1e-5)
    np.testing.assert_allclose(frame.T @ (frame @ drawn), drawn, atol=1e-4)

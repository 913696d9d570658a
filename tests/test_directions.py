"""Directions are what they say: measured where they are injected, over a text's own tokens, and drawn the same everywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, tiny_model

from emo_mlflow.activations import text_means
from emo_mlflow.directions import (
    check_directions,
    fit_directions,
    load_directions,
    random_control,
    save_directions,
)
from emo_mlflow.errors import UserError
from emo_mlflow.layers import BlockStack
from emo_mlflow.types import Direction, Prompt

N_LAYERS, D_MODEL = 4, 32
TEXTS = [(0, 20, 21, 22), (0, 23, 24), (0, 30, 31, 32, 33, 34, 35), (0, 40, 41), (0, 42, 43, 44), (0, 45, 46, 47, 48)]
LABELS = ["joy"] * 3 + ["neutral"] * 3


@pytest.fixture(scope="module")
def stack():
    return BlockStack(tiny_model("llama", n_layers=N_LAYERS, d_model=D_MODEL))


def prompts():
    return [Prompt(f"text {i}", label, "fit") for i, label in enumerate(LABELS)]


def block_streams(model, tokens):
    """Input and output of every block, by hooks: [n_layers, q, d_model] each."""
    before, after = [], []
    handles = []
    for block in model.model.layers if hasattr(model, "model") else model.transformer.h:
        handles.append(block.register_forward_pre_hook(lambda m, args: before.append(args[0][0].clone())))
        handles.append(
            block.register_forward_hook(
                lambda m, args, out: after.append((out[0] if isinstance(out, tuple) else out).reshape(args[0].shape)[0])
            )
        )
    with torch.no_grad():
        model(torch.tensor([tokens]))
    for handle in handles:
        handle.remove()
    return torch.stack(before), torch.stack(after)


@pytest.mark.parametrize("site", ["resid_pre", "resid_post"])
def test_measured_at_the_site_of_injection(stack, site):
    """The first system measured after a block and injected before it. Checked against hooks, text by text, unbatched."""
    means, norms = text_means(stack, TEXTS, site)
    for i, tokens in enumerate(TEXTS):
        own = block_streams(stack.model, tokens)[site == "resid_post"][:, 1:]
        assert means[i] == pytest.approx(own.mean(dim=1).numpy(), abs=1e-4)
        assert norms[i] == pytest.approx(own.norm(dim=-1).mean(dim=1).numpy(), rel=1e-4)


def test_neither_the_first_position_nor_the_batch_leaks_in(stack):
    """Means over BOS and padding were functions of the text's length: a text's mean is its own, whatever runs beside it."""
    alone = text_means(stack, TEXTS[:1], "resid_pre")[0]
    together = text_means(stack, TEXTS, "resid_pre")[0][:1]
    assert together == pytest.approx(alone, abs=1e-5)
    with torch.no_grad():
        embedded = stack.model.model.embed_tokens(torch.tensor(TEXTS[0]))
    assert alone[0, 0] == pytest.approx(embedded[1:].mean(dim=0).numpy(), abs=1e-6)


def test_the_direction_is_the_difference_of_means_over_texts(stack):
    means, norms = text_means(stack, TEXTS, "resid_pre")
    fit = fit_directions(stack, prompts(), TEXTS, "resid_pre", "neutral")
    assert list(fit.directions) == ["joy"]
    assert fit.directions["joy"].vectors == pytest.approx(means[:3].mean(axis=0) - means[3:].mean(axis=0), abs=1e-5)
    assert fit.residual_norms == pytest.approx(norms.mean(axis=0), rel=1e-5)


def test_without_a_reference_the_others_are_it(stack):
    fit = fit_directions(stack, prompts(), TEXTS, "resid_pre", None)
    assert fit.directions["joy"].vectors == pytest.approx(-fit.directions["neutral"].vectors, abs=1e-6)


def test_a_text_without_own_tokens_is_refused(stack):
    with pytest.raises(UserError, match="too short"):
        fit_directions(stack, prompts()[:1], [(0,)], "resid_pre", None)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_directions_of_its_width(family):
    stack = BlockStack(tiny_model(family, n_layers=2, d_model=D_MODEL))
    for direction in fit_directions(stack, prompts(), TEXTS, "resid_post", "neutral").directions.values():
        assert direction.vectors.shape == (2, D_MODEL) and np.isfinite(direction.vectors).all()


def test_random_controls_are_equal_on_every_machine():
    """The draw is pinned: hashes salted per process gave the first system other controls at every run."""
    vector = np.arange(1, 5, dtype=np.float32)
    drawn, _ = random_control(vector, None, seed=0, emotion="joy", layer=3, draw=1)
    assert drawn == pytest.approx(PINNED, abs=1e-5)
    again, _ = random_control(vector, None, seed=0, emotion="joy", layer=3, draw=1)
    assert (drawn == again).all()


PINNED = [3.154142, 3.606473, -0.495142, -2.607599]


def test_random_controls_have_the_norm_and_rank_of_what_they_control_for():
    rng = np.random.default_rng(0)
    vector = rng.normal(size=64).astype(np.float32)
    draws = np.stack([random_control(vector, None, seed=1, emotion="joy", layer=0, draw=i)[0] for i in range(200)])
    assert np.linalg.norm(draws, axis=1) == pytest.approx(np.linalg.norm(vector), rel=1e-5)
    assert abs(draws.mean()) < 0.05 and len(np.unique(draws[:, 0])) == 200
    basis = np.linalg.qr(rng.normal(size=(64, 3)))[0].T.astype(np.float32)
    drawn, frame = random_control(vector, basis, seed=1, emotion="joy", layer=0, draw=0)
    assert frame @ frame.T == pytest.approx(np.eye(3), abs=1e-5)
    assert np.linalg.norm(drawn) == pytest.approx(np.linalg.norm(basis @ vector), rel=1e-5)
    assert frame @ drawn == pytest.approx(basis @ vector, abs=1e-4)


def directions(**changes):
    values = {"emotion": "joy", "site": "resid_pre", "vectors": np.ones((N_LAYERS, D_MODEL), np.float32)}
    return {"joy": Direction(**{**values, **changes})}


def test_files_come_back_as_they_were(tmp_path):
    basis = np.zeros((N_LAYERS, 2, D_MODEL), np.float32)
    basis[:, [0, 1], [0, 1]] = 1
    save_directions(tmp_path / "d.safetensors", directions(basis=basis), {"model_fingerprint": "abc"})
    found, metadata = load_directions(tmp_path / "d.safetensors")
    assert (found["joy"].vectors == 1).all() and (found["joy"].basis == basis).all()
    assert metadata == {"site": "resid_pre", "model_fingerprint": "abc"}


def test_files_that_are_none_are_refused(tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00garbage!")
    for name in ("bad.safetensors", "absent.safetensors"):
        with pytest.raises(UserError, match=name):
            load_directions(tmp_path / name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"emotions": ["fear"]}, "no direction for fear"),
        ({"shape": (N_LAYERS, 64)}, "width 64"),
        ({"shape": (12, D_MODEL)}, "12 layers"),
        ({"site": "resid_post"}, "resid_pre"),
        ({"fingerprint": "other"}, "another model"),
        ({"directions": directions(vectors=np.full((N_LAYERS, D_MODEL), np.nan, np.float32))}, "not finite"),
    ],
)
def test_directions_of_another_model_or_site_are_refused(change, message):
    arguments = {
        "directions": directions(),
        "metadata": {"model_fingerprint": "abc"},
        "emotions": ["joy"],
        "site": "resid_pre",
    }
    arguments |= {"shape": (N_LAYERS, D_MODEL), "fingerprint": "abc", **change}
    with pytest.raises(UserError, match=message):
        check_directions(arguments.pop("directions"), arguments.pop("metadata"), **arguments)

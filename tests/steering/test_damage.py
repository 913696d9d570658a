"""Damage is that of a plain forward pass with a hook, and the strength rule meets its budget for any direction."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from packs import D_MODEL, N_LAYERS, stack_of
from plain_passes import BOUNDARIES, patch_of, patches_of, plain_logits, texts_of
from scipy import optimize
from tiny_models import FAMILIES

from emo_mlflow.errors import UserError
from emo_mlflow.steering import damage, likelihood
from emo_mlflow.steering.damage import DamageMeter
from emo_mlflow.steering.edits import Patch
from emo_mlflow.steering.strength import TOLERANCE, find_strengths
from emo_mlflow.types import FloatArray, Tokens


def plain_damage(model, tokens: Tokens, patches: list[Patch]) -> FloatArray:
    """KL, rise of the NLL and same top token of the tokens from the third on, [3, patches, q - 2]."""
    clean, *patched = plain_logits(model, tokens, [None, *patches])[:, 1:-1].double().log_softmax(-1)
    lost = clean - torch.stack(patched)
    targets = torch.tensor(tokens[2:])[None, :, None].expand(len(patches), -1, 1)
    same = torch.stack(patched).argmax(-1) == clean.argmax(-1)
    return torch.stack([(clean.exp() * lost).sum(-1), lost.gather(-1, targets)[..., 0], same.double()]).numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_damage_is_that_of_a_plain_forward_pass(family):
    """Guards against: an edited first position, padding that is seen, rows that get another row's edit or start, shifted targets."""
    rng = np.random.default_rng(0)
    stack, texts, patches = stack_of(family), texts_of(rng, 8), patches_of(rng, 12)
    found = DamageMeter(stack, texts, BOUNDARIES).measure(patches)
    assert found.text.tolist() == [i for i, tokens in enumerate(texts) for _ in tokens[2:]]
    by_text = [plain_damage(stack.model, tokens, patches) for tokens in texts]
    kl, rise, same = np.concatenate(by_text, axis=2)
    assert found.kl == pytest.approx(kl, abs=1e-4, rel=1e-4)
    assert found.nll_rise == pytest.approx(rise, abs=1e-4, rel=1e-4)
    assert (found.same_top == same).mean() > 0.99  # ties
    assert found.mean_kl == pytest.approx(kl.mean(axis=1), abs=1e-4, rel=1e-4)
    assert found.perplexity_ratio == pytest.approx(np.exp(rise.mean(axis=1)), rel=1e-3)
    assert (
        pytest.approx(np.stack([each[0].mean(axis=1) for each in by_text]), abs=1e-4, rel=1e-4)
        == found.by_text(found.kl).T
    )


def test_what_changes_nothing_does_no_damage():
    texts = texts_of(np.random.default_rng(1), 6)
    found = DamageMeter(stack_of("llama"), texts, BOUNDARIES).measure(
        [patch_of(np.zeros(D_MODEL), b) for b in BOUNDARIES]
    )
    assert np.abs(found.kl).max() < 1e-5 and np.abs(found.nll_rise).max() < 1e-5 and found.same_top.all()
    assert found.perplexity_ratio == pytest.approx(np.ones(N_LAYERS + 1), abs=1e-5)


def test_damage_does_not_depend_on_how_the_work_is_cut(monkeypatch):
    """Texts and patches alone, in small packs, on threads, with clean logits kept or not: the same numbers."""
    rng = np.random.default_rng(2)
    stack, texts, patches = stack_of("gpt2"), texts_of(rng, 12), patches_of(rng, 7)
    whole = DamageMeter(stack, texts, BOUNDARIES).measure(patches)
    monkeypatch.setitem(damage.BATCH_TOKENS, "cpu", 30)
    monkeypatch.setitem(damage.PACK_TOKENS, "cpu", 60)
    monkeypatch.setitem(likelihood.LOGITS_BYTES, "cpu", 4 * stack.vocabulary * 7)
    monkeypatch.setattr(damage, "KEPT_BYTES", 0)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        meter = DamageMeter(stack, texts, BOUNDARIES)
        cut = meter.measure(patches)
    finally:
        torch.set_num_threads(before)
    assert meter.n_batches > 3
    for name in ("kl", "nll_rise", "same_top", "text"):
        assert getattr(cut, name) == pytest.approx(getattr(whole, name), abs=1e-4)
    first = meter.measure(patches, batches=1)
    part = np.isin(whole.text, np.unique(first.text))
    assert 0 < part.sum() < len(part) and first.kl == pytest.approx(whole.kl[:, part], abs=1e-4)


def test_overflow_is_infinite_damage():
    texts = texts_of(np.random.default_rng(3), 3)
    found = DamageMeter(stack_of("gpt2"), texts, [1]).measure([patch_of(np.full(D_MODEL, 1e38), 1, 10.0)])
    assert found.mean_kl.tolist() == [np.inf]


def test_texts_without_a_token_to_score_are_refused():
    for texts in ([], [(1, 2, 3), (1, 2)]):
        with pytest.raises(UserError, match="three tokens"):
            DamageMeter(stack_of("gpt2"), texts, [0])


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_strengths_meet_their_budgets(family):
    """Also where directions are a million times longer than others; and it is the strength that another root finder finds."""
    rng = np.random.default_rng(4)
    stack, texts = stack_of(family), texts_of(rng, 30)
    meter = DamageMeter(stack, texts, BOUNDARIES)
    patches = [patch_of(rng.normal(size=D_MODEL) * 10.0 ** rng.integers(-3, 4), b % N_LAYERS) for b in range(16)]
    budgets = [0.01, 0.03, 0.1, 0.2] * 4
    found = find_strengths(meter, patches, budgets)
    trials = [replace(p, alpha_by_step=np.array([a], np.float32)) for p, a in zip(patches, found.alpha, strict=True)]
    assert meter.measure(trials).mean_kl == pytest.approx(found.kl, rel=1e-3)
    assert np.abs(found.kl / budgets - 1).max() <= TOLERANCE

    def excess(x: float, i: int) -> float:
        trial = replace(patches[i], alpha_by_step=np.array([np.exp(x)], np.float32))
        return float(np.log(meter.measure([trial]).mean_kl[0] / budgets[i]))

    for i in range(4):
        x = np.log(found.alpha[i])
        assert optimize.brentq(excess, x - 0.5, x + 0.5, args=(i,), xtol=1e-3) == pytest.approx(x, abs=TOLERANCE)


def test_a_strength_is_a_function_of_the_direction_alone():
    """In any company and any order the same number; twice the vector, half the strength."""
    rng = np.random.default_rng(5)
    meter = DamageMeter(stack_of("qwen3"), texts_of(rng, 20), BOUNDARIES)
    patches = [patch_of(rng.normal(size=D_MODEL), b % N_LAYERS) for b in range(6)]
    together = find_strengths(meter, patches, [0.1] * 6).alpha
    backwards = find_strengths(meter, patches[::-1], [0.1] * 6).alpha[::-1]
    alone = [find_strengths(meter, [patch], [0.1]).alpha[0] for patch in patches]
    assert together.tolist() == backwards.tolist() == alone
    doubled = find_strengths(meter, [replace(patch, shift=2 * patch.shift) for patch in patches], [0.1] * 6).alpha
    assert doubled == pytest.approx(together / 2, rel=1e-3)


def test_budgets_out_of_reach_are_refused():
    """A model's predictions saturate, and what a clamp removes has its own damage."""
    rng = np.random.default_rng(6)
    meter = DamageMeter(stack_of("gpt2"), texts_of(rng, 5), [1])
    with pytest.raises(UserError, match="1e\\+06 nats per token"):
        find_strengths(meter, [patch_of(rng.normal(size=D_MODEL), 1)], [1e6])
    basis = np.linalg.qr(rng.normal(size=(D_MODEL, 20)))[0].T.astype(np.float32)
    with pytest.raises(UserError, match="after 1 blocks"):
        find_strengths(meter, [patch_of(rng.normal(size=20) @ basis, 1, removed=basis)], [1e-4])

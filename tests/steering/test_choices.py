"""The log-probabilities of choices are those of a plain forward pass over question and choice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from packs import VOCABULARY, stack_of
from plain_passes import BOUNDARIES, patches_of, plain_logits
from tiny_models import FAMILIES

from emo_mlflow.errors import UserError
from emo_mlflow.steering import choices
from emo_mlflow.steering.choices import ChoiceMeter, Item
from emo_mlflow.steering.edits import Patch
from emo_mlflow.types import FloatArray


def items_of(rng: np.random.Generator, n: int, longest: int = 4) -> list[Item]:
    """Of 2 to 5 choices, with questions of few lengths, so that some are run together."""

    def some(low: int, high: int) -> tuple[int, ...]:
        return tuple(int(token) for token in rng.integers(8, VOCABULARY, rng.integers(low, high + 1)))

    return [Item(some(2, 5), tuple(some(1, longest) for _ in range(rng.integers(2, 6)))) for _ in range(n)]


def plain_totals(model, item: Item, patches: list[Patch | None]) -> FloatArray:
    """[patches, choices]."""
    totals = []
    for choice in item.choices:
        logits = plain_logits(model, item.question + choice, patches).double().log_softmax(-1)
        totals.append(sum(logits[:, len(item.question) + i - 1, token] for i, token in enumerate(choice)))
    return torch.stack(totals, dim=1).numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_choices_are_as_likely_as_in_a_plain_forward_pass(family):
    """Guards against: a choice that continues another item's question, an unedited choice, padding that is counted, shifted targets."""
    rng = np.random.default_rng(0)
    stack, items = stack_of(family), items_of(rng, 8)
    patches = [None, *patches_of(rng, 8), None]
    found = ChoiceMeter(stack, items, BOUNDARIES).measure(patches)
    for i, item in enumerate(items):
        expected, n = plain_totals(stack.model, item, patches), len(item.choices)
        assert found.total[:, i, :n] == pytest.approx(expected, abs=2e-4, rel=1e-5)
        assert found.per_token[:, i, :n] == pytest.approx(expected / [len(c) for c in item.choices], abs=2e-4, rel=1e-5)
        assert np.isnan(found.total[:, i, n:]).all()


def test_choices_of_one_token_need_no_pass_of_their_own():
    rng = np.random.default_rng(1)
    stack, items, patches = stack_of("llama"), items_of(rng, 3, longest=1), patches_of(rng, 2)
    found = ChoiceMeter(stack, items, BOUNDARIES).measure(patches)
    for i, item in enumerate(items):
        assert found.total[:, i, : len(item.choices)] == pytest.approx(
            plain_totals(stack.model, item, patches), abs=2e-4
        )


def test_choices_do_not_depend_on_how_the_work_is_cut(monkeypatch):
    """In small packs and on threads: the same numbers."""
    rng = np.random.default_rng(2)
    stack, items, patches = stack_of("gpt2"), items_of(rng, 10), patches_of(rng, 5)
    whole = ChoiceMeter(stack, items, BOUNDARIES).measure([*patches, None]).total
    monkeypatch.setitem(choices.BATCH_TOKENS, "cpu", 20)
    monkeypatch.setitem(choices.PACK_TOKENS, "cpu", 40)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        cut = ChoiceMeter(stack, items, BOUNDARIES).measure([*patches, None]).total
    finally:
        torch.set_num_threads(before)
    assert cut == pytest.approx(whole, abs=1e-4, nan_ok=True)


def test_items_that_cannot_be_scored_are_refused():
    for items in ([], [Item((1,), ((2,),))], [Item((1, 2), ())], [Item((1, 2), ((3,), ()))]):
        with pytest.raises(UserError, match="multiple-choice"):
            ChoiceMeter(stack_of("gpt2"), items, [0])

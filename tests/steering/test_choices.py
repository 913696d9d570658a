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


def items_of(rng: np.random.Generator, n: int, longest: int = 4) -> list[Item]:
    """Of 2 to 5 choices, with questions of few lengths, so that some are run together."""

    def some(low: int, high: int) -> tuple[int, ...]:
        return tuple(int(token) for token in rng.integers(8, VOCABULARY, rng.integers(low, high + 1)))

    return [Item(some(2, 5), tuple(some(1, longest) for _ in range(rng.integers(2, 6)))) for _ in range(n)]


def plain_total(model, item: Item, choice: tuple[int, ...], patch: Patch | None) -> float:
    logits = plain_logits(model, item.question + choice, patch).double().log_softmax(-1)
    return sum(float(logits[len(item.question) + i - 1, token]) for i, token in enumerate(choice))


@pytest.mark.parametrize("family", FAMILIES)
def test_choices_are_as_likely_as_in_a_plain_forward_pass(family):
    """Guards against: a choice that continues another item's question, an unedited choice, padding that is counted, shifted targets."""
    rng = np.random.default_rng(0)
    stack, items = stack_of(family), items_of(rng, 6)
    patches = [None, *patches_of(rng, 3), None]
    found = ChoiceMeter(stack, items, BOUNDARIES).measure(patches)
    for row, patch in enumerate(patches):
        for i, item in enumerate(items):
            expected = [plain_total(stack.model, item, choice, patch) for choice in item.choices]
            assert found.total[row, i, : len(expected)] == pytest.approx(expected, abs=2e-4, rel=1e-5)
            lengths = [len(choice) for choice in item.choices]
            assert found.per_token[row, i, : len(expected)] == pytest.approx(
                np.divide(expected, lengths), abs=2e-4, rel=1e-5
            )
            assert np.isnan(found.total[row, i, len(expected) :]).all()


def test_choices_of_one_token_need_no_pass_of_their_own():
    rng = np.random.default_rng(1)
    stack, items, (patch,) = stack_of("llama"), items_of(rng, 5, longest=1), patches_of(rng, 1)
    found = ChoiceMeter(stack, items, BOUNDARIES).measure([patch])
    for i, item in enumerate(items):
        assert found.total[0, i, 0] == pytest.approx(plain_total(stack.model, item, item.choices[0], patch), abs=2e-4)


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

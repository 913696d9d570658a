"""Heads replaced in generation: the definition's tokens, mixed with directions, and equal to a model whose weights lack the head."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packs import D_MODEL, EOS, N_LAYERS, assert_same_or_tied, random_rows, run_packed, stack_of
from tiny_models import FAMILIES

from emo_mlflow.models.blocks import BlockStack
from emo_mlflow.models.families import find_blocks, find_output_projection
from emo_mlflow.steering.edits import HeadPatch
from emo_mlflow.steering.packing import Row
from emo_mlflow.steering.sampling import Decoding
from emo_mlflow.types import Cell

N_HEADS = 4
HEAD_DIM = D_MODEL // N_HEADS


def random_head(rng: np.random.Generator, scope: str, window: int | None) -> HeadPatch:
    """A head of some block, replaced by nothing or by something large enough to matter."""
    replacement = (rng.normal(size=HEAD_DIM) * 8 * (rng.random() > 0.3)).astype(np.float32)
    return HeadPatch(int(rng.integers(0, N_LAYERS)), scope, window, int(rng.integers(0, N_HEADS)), replacement)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    scope=st.sampled_from([("window", 1), ("window", 3), ("generated", None), ("all", None)]),
    stops=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_replaced_heads_equal_the_uncached_definition(family, scope, stops, seed):
    """Guards against: a head that stays replaced after its position has left the window, another row's head, a head of the wrong
    width under grouped queries, and rows of directions in the same pack that are disturbed."""
    n_steps, stack = 10, stack_of(family)
    decoding = Decoding(n_steps, 0 if stops else n_steps, 0.0, EOS)
    rng = np.random.default_rng(seed)
    rows = random_rows(rng, 12, *scope, "constant", n_steps)
    rows = [Row(row.cell, row.tokens, random_head(rng, *scope) if i % 2 else row.patch) for i, row in enumerate(rows)]
    found = run_packed(stack, rows, decoding)
    for row in rows:
        assert_same_or_tied(stack, row, found[row.cell.condition_id], decoding)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_zeroed_head_equals_its_rows_of_the_output_projection_zeroed(family):
    """In scope `all` an ablated head is a model without the head: its rows of the output projection's weight are zero."""
    stack, decoding = stack_of(family), Decoding(8, 8, 0.0, EOS)
    prompts = [tuple(range(8 + i, 14 + i)) for i in range(3)]
    heads = [(layer, head) for layer in range(N_LAYERS) for head in range(N_HEADS)]
    patches = {at: HeadPatch(at[0], "all", None, at[1], np.zeros(HEAD_DIM, np.float32)) for at in heads}
    ablated = run_packed(stack, [Row(Cell(f"{at}{i}", "p", 0), p, patches[at]) for at in heads for i, p in enumerate(prompts)], decoding)
    clean = [Row(Cell(str(i), "p", 0), p, None) for i, p in enumerate(prompts)]
    whole, changed = run_packed(stack, clean, decoding), 0
    for layer, head in heads:
        model = copy.deepcopy(stack.model)
        projection = find_output_projection(find_blocks(model)[layer])
        by_input = projection.weight if type(projection).__name__ == "Conv1D" else projection.weight.T
        with torch.no_grad():
            by_input[head * HEAD_DIM : (head + 1) * HEAD_DIM] = 0
        without = run_packed(BlockStack(model), clean, decoding)
        assert {i: ablated[f"{(layer, head)}{i}"] for i in without} == without
        changed += without != whole
    assert changed > N_LAYERS * N_HEADS / 2, "these heads do nothing, so that nothing was tested"


def test_nothing_is_left_on_the_output_projections():
    """Head ablations of the first system accumulated, because their hooks were never removed; also after an error."""
    stack = stack_of("llama")
    rows = [Row(Cell("c", "p", 0), (9, 10, 11), random_head(np.random.default_rng(0), "generated", None))]
    run_packed(stack, rows, Decoding(4, 4, 0.0, EOS))
    broken = HeadPatch(1, "generated", None, 99, np.zeros(HEAD_DIM, np.float32))
    with pytest.raises(IndexError):
        run_packed(stack, [Row(Cell("c", "p", 0), (9, 10, 11), broken)], Decoding(4, 4, 0.0, EOS))
    assert not any(find_output_projection(block)._forward_pre_hooks for block in stack.blocks)

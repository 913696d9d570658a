"""Packs of random rows on tiny models, and how what they decode to is held to the definition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from reference import reference_logits
from tiny_models import tiny_model

from emo_mlflow.models.blocks import BlockStack
from emo_mlflow.steering.decoding import PackDecoder
from emo_mlflow.steering.edits import Patch, make_patch
from emo_mlflow.steering.operations import STREAM_EDITS
from emo_mlflow.steering.packing import Row, plan_packs
from emo_mlflow.steering.sampling import Decoding
from emo_mlflow.types import Cell, Condition

TIE = 1e-4
EOS = (5, 6, 7)
N_LAYERS, D_MODEL, VOCABULARY = 4, 32, 97
_stacks: dict[str, BlockStack] = {}


def stack_of(family: str) -> BlockStack:
    if family not in _stacks:
        _stacks[family] = BlockStack(tiny_model(family, seed=0, n_layers=N_LAYERS, d_model=D_MODEL))
    return _stacks[family]


def random_rows(
    rng: np.random.Generator, n: int, scope: str, window: int | None, schedule: str, n_steps: int,
    operations: Sequence[str] = tuple(STREAM_EDITS), most_edits: int = 1,
) -> list[Row]:  # fmt: skip
    """Rows of all operations, vectors and subspaces, at all boundaries, with prompts of many lengths, baselines between.

    Args:
        most_edits: of a row, at boundaries that may be equal.
    """
    rows = []
    for i in range(n):
        prompt = tuple(int(token) for token in rng.integers(8, VOCABULARY, rng.integers(2, 13)))
        patch = None
        edits: list[Patch] = []
        for _ in range(int(rng.integers(1, most_edits + 1)) if rng.random() > 0.15 else 0):
            vector, basis = (rng.normal(size=D_MODEL) * 6).astype(np.float32), None
            if rng.random() > 0.5:
                rank = int(rng.integers(1, 4))
                basis = np.linalg.qr(rng.normal(size=(D_MODEL, rank)))[0].T.astype(np.float32)
                vector = (rng.normal(size=rank) * 30 @ basis).astype(np.float32)
            boundary = int(rng.integers(0, N_LAYERS + 1))
            condition = Condition(
                "emotion", "joy", max(0, boundary - 1), rng.normal() * 2, scope=scope, patch_window=window, alpha_schedule=schedule,
                site="resid_post" if boundary else "resid_pre", operation=operations[int(rng.integers(len(operations)))],
            )  # fmt: skip
            edits.append(make_patch(condition, vector, basis, 1.0, n_steps))
        if edits:
            first, *then = sorted(edits, key=lambda edit: edit.boundary)
            patch = replace(first, then=tuple(then))
        rows.append(Row(Cell(f"c{i}", f"p{len(prompt)}", 0), prompt, patch))
    return rows


def run_packed(stack: BlockStack, rows: list[Row], decoding: Decoding, batch_size: int = 64) -> dict[str, tuple[int, ...]]:
    """Tokens by condition, decoded in packs."""
    found = {}
    for pack in plan_packs(rows, batch_size):
        for decoded in PackDecoder(stack, pack, decoding).run():
            found[decoded.row.cell.condition_id] = decoded.tokens
    return found


def assert_same_or_tied(stack: BlockStack, row: Row, tokens: tuple[int, ...], decoding: Decoding) -> None:
    """Each token is the definition's choice after those before it, up to a first step at which its two largest logits are closer than TIE."""
    assert len(tokens) <= decoding.n_steps
    logits = reference_logits(stack.model, row, tokens[: decoding.n_steps - 1])
    logits[: decoding.min_new_tokens, list(decoding.eos_ids)] = -torch.inf
    for step in range(len(logits)):
        (largest, second), (chosen, _) = logits[step].topk(2)
        same = int(chosen) == tokens[step] if step < len(tokens) else int(chosen) in decoding.eos_ids
        if not same:
            assert largest - second < TIE, (row, tokens, step, int(chosen), float(largest - second))
            return

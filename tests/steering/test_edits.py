"""Positions, schedules and the algebra of the edits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from emo_mlflow.errors import UserError
from emo_mlflow.settings.schedules import schedule_factors
from emo_mlflow.steering.edits import RowEdits, make_patch
from emo_mlflow.steering.positions import first_stale_position, patched_positions
from emo_mlflow.types import Condition

D = 16


def condition(**changes) -> Condition:
    return Condition(**{"kind": "emotion", "emotion": "joy", "layer": 2, "alpha": 1.5, "scope": "generated", **changes})


def edited(patch, hidden: np.ndarray, step: int = 0) -> np.ndarray:
    edits = RowEdits([patch], D, len(patch.alpha_by_step), torch.device("cpu"), torch.float32)
    return edits.apply(torch.from_numpy(hidden)[None, None], slice(0, 1), step)[0, 0].numpy()


def test_the_positions_of_the_definition():
    """DESIGN: window: max(P, P+t-W) .. P+t-1, or P-1 where that is empty; generated: from P-1 on; all: from 0 on."""
    assert [list(patched_positions("window", 3, 10, t)) for t in range(6)] == [
        [9], [10], [10, 11], [10, 11, 12], [11, 12, 13], [12, 13, 14],
    ]  # fmt: skip
    assert [list(patched_positions("generated", None, 4, t)) for t in range(3)] == [[3], [3, 4], [3, 4, 5]]
    assert list(patched_positions("all", None, 3, 2)) == [0, 1, 2, 3, 4]
    assert [list(patched_positions("prompt", None, 3, t)) for t in (0, 5)] == [[0, 1, 2], [0, 1, 2]]
    assert [list(patched_positions("prompt", k, 3, 5)) for k in (1, 2, 9)] == [[2], [1, 2], [0, 1, 2]]
    assert [list(patched_positions("first", 2, 3, t)) for t in range(5)] == [[2], [2, 3], [2, 3, 4], [2, 3, 4], [2, 3, 4]]


@given(st.integers(1, 6), st.integers(1, 20), st.integers(1, 30), st.booleans())
def test_what_is_run_again_covers_what_changed(window, prompt, step, constant):
    """Every position whose edit differs from the step before, and all after it, is run again; no more than W + 1 are."""
    now = set(patched_positions("window", window, prompt, step))
    before = set(patched_positions("window", window, prompt, step - 1)) if step > 1 else set()
    stale = first_stale_position("window", window, prompt, step, constant)
    changed = (now ^ before) if constant else (now | before)
    assert stale == min(changed)
    assert prompt + step - stale <= window + 1


def test_schedules():
    """Only the first alpha of the first system's schedule was ever used; here each step has its own."""
    assert schedule_factors("constant", 3).tolist() == [1, 1, 1]
    assert schedule_factors("linear", 4).tolist() == [1, 0.75, 0.5, 0.25]
    assert schedule_factors("exponential:2", 5) == pytest.approx([1, 2**-0.5, 0.5, 2**-1.5, 0.25])
    assert schedule_factors("exponential", 11)[10] == pytest.approx(0.5)
    assert schedule_factors("1,0.5", 4).tolist() == [1, 0.5, 0.5, 0.5]
    for wrong in ["", "cubic", "exponential:0", "exponential:x", "1,,2", "1,nan", "constant:2", "linear:3"]:
        with pytest.raises(UserError, match="alpha_schedule"):
            schedule_factors(wrong, 3)


def test_add_adds_alpha_v():
    rng = np.random.default_rng(0)
    v, h = rng.normal(size=(2, D)).astype(np.float32)
    patch = make_patch(condition(alpha_schedule="1,0.5"), v, None, 7.0, 2)
    assert edited(patch, h, 0) == pytest.approx(h + 1.5 * v, abs=1e-5)
    assert edited(patch, h, 1) == pytest.approx(h + 0.75 * v, abs=1e-5)


def test_residual_units_do_not_depend_on_the_length_of_the_direction():
    rng = np.random.default_rng(1)
    v, h = rng.normal(size=(2, D)).astype(np.float32)
    u = v / np.linalg.norm(v)
    for scale in (1.0, 100.0):
        patch = make_patch(condition(alpha_unit="residual"), (scale * v).astype(np.float32), None, 7.0, 1)
        assert edited(patch, h) == pytest.approx(h + 1.5 * 7.0 * u, abs=1e-4)


@pytest.mark.parametrize("rank", [1, 3])
def test_projecting_out_leaves_nothing_and_clamping_sets_the_coordinates(rank):
    rng = np.random.default_rng(2)
    v, h = rng.normal(size=(2, D)).astype(np.float32)
    basis = np.linalg.qr(rng.normal(size=(D, rank)))[0].T.astype(np.float32)
    out = edited(make_patch(condition(operation="project_out"), v, basis, 1.0, 1), h)
    assert basis @ out == pytest.approx(np.zeros(rank), abs=1e-5)
    rest = h - basis.T @ (basis @ h)
    assert out == pytest.approx(rest, abs=1e-5)
    clamped = edited(make_patch(condition(operation="clamp"), v, basis, 1.0, 1), h)
    assert basis @ clamped == pytest.approx(1.5 * basis @ v, abs=1e-4)
    assert clamped - basis.T @ (basis @ clamped) == pytest.approx(rest, abs=1e-5)


@pytest.mark.parametrize("operation", ["add", "project_out", "clamp"])
def test_a_vector_is_its_one_dimensional_subspace(operation):
    rng = np.random.default_rng(3)
    v, h = rng.normal(size=(2, D)).astype(np.float32)
    u = (v / np.linalg.norm(v)).astype(np.float32)
    as_vector = make_patch(condition(operation=operation), v, None, 1.0, 1)
    as_subspace = make_patch(condition(operation=operation), v, u[None], 1.0, 1)
    assert edited(as_vector, h) == pytest.approx(edited(as_subspace, h), abs=1e-5)


def test_directions_that_cannot_be_injected_are_refused():
    for vector in (np.zeros(D, np.float32), np.full(D, np.nan, np.float32), np.full(D, np.inf, np.float32)):
        with pytest.raises(UserError, match="layer 2"):
            make_patch(condition(), vector, None, 1.0, 1)


def test_condition_ids_are_hashes_of_the_condition_alone():
    """Salted hashes and paths without alpha or layer in them made the first system overwrite its own results."""
    first = condition()
    assert (Condition("baseline").condition_id, first.condition_id) == ("8feb20419daf", "f12390b0e412")
    changes = [
        {"layer": 3}, {"alpha": 2.0}, {"emotion": "fear"}, {"scope": "window", "patch_window": 3}, {"kind": "random", "draw": 0, "seed": 0},
        {"site": "resid_post"}, {"operation": "clamp"}, {"alpha_unit": "residual"}, {"alpha_schedule": "linear"},
    ]  # fmt: skip
    assert len({first.condition_id, *(condition(**change).condition_id for change in changes)}) == 1 + len(changes)

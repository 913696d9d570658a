"""Operations do what docs/semantics.md says of them, each by its formula written out, and are known wherever operations are named."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from packs import D_MODEL, EOS, assert_same_or_tied, random_rows, run_packed, stack_of
from tiny_models import FAMILIES

from emo_mlflow.errors import UserError
from emo_mlflow.scoring.targets import expected_sign
from emo_mlflow.settings.tables import HEADS, PARAMETERS
from emo_mlflow.steering import operations
from emo_mlflow.steering.edits import RowEdits, make_patch
from emo_mlflow.steering.operations import HEAD_REPLACEMENTS, STREAM_EDITS
from emo_mlflow.steering.sampling import Decoding
from emo_mlflow.types import Condition, HeadOperation, Operation

DOCS = Path(__file__).parents[2] / "docs"


def along(h: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """The part of h in the subspace of the basis' rows."""
    return basis.T @ (basis @ h)


# h, alpha, the direction v (or its part in the subspace) and an orthonormal basis of the subspace (of v alone, for a vector).
FORMULAS = {
    "add": lambda h, alpha, v, basis: h + alpha * v,
    "project_out": lambda h, alpha, v, basis: h - along(h, basis),
    "clamp": lambda h, alpha, v, basis: h - along(h, basis) + alpha * v,
    "add_keep_norm": lambda h, alpha, v, basis: (h + alpha * v) / np.linalg.norm(h + alpha * v) * np.linalg.norm(h),
}


def condition(name: str, alpha: float = 1.5) -> Condition:
    return Condition("emotion", "joy", 1, alpha, scope="generated", operation=name)


def edits_of(*patches) -> RowEdits:
    return RowEdits(patches, D_MODEL, 1, torch.device("cpu"), torch.float32)


def applied(name: str, alpha: float, v: np.ndarray, basis: np.ndarray | None, h: np.ndarray) -> np.ndarray:
    patch = make_patch(condition(name, alpha), v.astype(np.float32), basis if basis is None else basis.astype(np.float32), 1.0, 1)
    hidden = torch.from_numpy(h.astype(np.float32))[None, None]
    return edits_of(patch).apply(hidden, slice(0, 1), 0)[0, 0].numpy()


@pytest.mark.parametrize("name", STREAM_EDITS)
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_an_operation_is_its_formula(name, rank):
    """Guards: what an operation's file declares is not what the page says; and an operation that nothing here checks."""
    rng = np.random.default_rng(rank)
    for alpha in (-2.0, 0.5, 3.0):
        v, h = rng.normal(size=(2, D_MODEL))
        basis = np.linalg.qr(rng.normal(size=(D_MODEL, rank)))[0].T if rank else None
        injected, frame = (v, v[None] / np.linalg.norm(v)) if basis is None else (along(v, basis), basis)
        assert applied(name, alpha, v, basis, h) == pytest.approx(FORMULAS[name](h, alpha, injected, frame), abs=1e-5)


@pytest.mark.parametrize("name", STREAM_EDITS)
def test_a_dose_of_zero_is_the_baseline_where_that_is_declared(name):
    """Guards: a dose-response with the baseline as a point that it does not have, or without one that it has."""
    v, h = np.random.default_rng(3).normal(size=(2, D_MODEL))
    unchanged = np.allclose(applied(name, 0.0, v, None, h), h, atol=1e-5)
    assert unchanged == STREAM_EDITS[name].zero_is_baseline


def test_a_kept_norm_is_kept_at_any_strength():
    """Guards: squares that overflow, a residual of zero that becomes no number, and one that is taken to zero exactly."""
    v, h = np.random.default_rng(4).normal(size=(2, D_MODEL)).astype(np.float32)
    for alpha in (1e-3, 1.0, 1e3, 1e30):
        assert np.linalg.norm(applied("add_keep_norm", alpha, v, None, h)) == pytest.approx(np.linalg.norm(h), rel=1e-5)
    far = applied("add_keep_norm", 1e30, v, None, h)
    assert far == pytest.approx(v / np.linalg.norm(v) * np.linalg.norm(h), abs=1e-5)
    assert not applied("add_keep_norm", 1.0, v, None, 0 * h).any()
    assert not applied("add_keep_norm", -1.0, h, None, h).any()


def test_rows_of_other_operations_are_the_same_bits_beside_a_kept_norm():
    """Rows never influence each other: `add` beside `add_keep_norm` is what it is alone."""
    rng = np.random.default_rng(5)
    vectors = rng.normal(size=(6, D_MODEL)).astype(np.float32)
    names = ["add", "add_keep_norm", "clamp"] * 2
    patches = [make_patch(condition(name), vector, None, 1.0, 1) for name, vector in zip(names, vectors, strict=True)]
    hidden = torch.from_numpy(rng.normal(size=(7, 3, D_MODEL)).astype(np.float32))
    together = edits_of(*patches, None).apply(hidden, slice(0, 7), 0)
    assert torch.equal(together[6], hidden[6])
    without = edits_of(*(patch if patch.removed is not None or not patch.keeps_norm else None for patch in patches), None)
    others = [0, 2, 3, 5]
    assert torch.equal(together[others], without.apply(hidden, slice(0, 7), 0)[others])
    lengths = hidden[[1, 4]].norm(dim=-1)
    torch.testing.assert_close(together[[1, 4]].norm(dim=-1), lengths)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("scope", "window"), [("window", 3), ("generated", None), ("all", None)])
def test_a_kept_norm_is_exact(family, scope, window):
    """The packed engine against the definition without a cache; mixed with other operations it is in test_decoding.py."""
    stack, decoding = stack_of(family), Decoding(5, 0, 0.0, EOS)
    rows = random_rows(np.random.default_rng(0), 3, scope, window, "1,0,2", 5, ("add_keep_norm",))
    found = run_packed(stack, rows, decoding)
    for row in rows:
        assert_same_or_tied(stack, row, found[row.cell.condition_id], decoding)


def test_operations_are_declared_wherever_they_are_named():
    """A name that settings know and no file declares fails when the model is loaded; a file that nothing lists, or no page names, is lost."""
    assert set(STREAM_EDITS) == set(get_args(Operation)) == set(FORMULAS)
    assert set(HEAD_REPLACEMENTS) == set(get_args(HeadOperation))
    files = {path.stem for path in Path(operations.__file__).parent.glob("*.py")}
    assert files - {"__init__", "declaration"} == {*STREAM_EDITS, *HEAD_REPLACEMENTS}
    for names, parameter, page in (
        (STREAM_EDITS, PARAMETERS["operation"], "semantics.md"),
        (HEAD_REPLACEMENTS, HEADS["operation"], "heads.md"),
    ):
        text = (DOCS / page).read_text(encoding="utf-8")
        assert all(name in parameter.help and f"| `{name}`" in text for name in names)


def test_an_operation_of_a_later_version_is_refused():
    """Guards: a comparison that takes an operation that it does not know for one that raises the label, and a traceback from a logged model."""
    with pytest.raises(UserError, match="unknown operation 'rotate'.*add_keep_norm"):
        expected_sign("rotate")
    with pytest.raises(UserError, match="unknown operation 'rotate'.*add_keep_norm"):
        make_patch(condition("rotate"), np.ones(D_MODEL, np.float32), None, 1.0, 1)
    assert [expected_sign(name) for name in ("add", "zero", "patch", "restore", "project_out")] == [1, -1, 1, -1, -1]
    backwards = (("add", -2.0), ("add_keep_norm", -1.0), ("clamp", 0.0), ("project_out", -1.0), ("zero", -1.0))
    assert {expected_sign(name, alpha) for name, alpha in backwards} == {-1}

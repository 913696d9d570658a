"""The intervention: which positions are changed, by how much, and how a batch of residual streams is edited.

Positions and steps are those of the definition: a prompt has P tokens at positions 0..P-1, and step t = 0, 1, ... chooses the token at
position P + t from a forward pass over positions 0..P+t-1, in which the residual stream at the positions of S_t is edited.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from emo_mlflow.errors import UserError
from emo_mlflow.settings.schedules import schedule_factors
from emo_mlflow.steering.operations import operation
from emo_mlflow.steering.operations.declaration import Injection, StreamEdit
from emo_mlflow.types import Condition, FloatArray, Scope


@dataclass(frozen=True, eq=False)
class Patch:
    """A condition made ready for the engine.

    A residual h becomes  g = h + alpha_t * shift - removed' removed h  at step t, and where the norm is kept  |h| g / |g|.

    Attributes:
        boundary: the boundary between blocks at which the stream is edited (blocks.BlockStack).
        scope, window: which positions.
        shift: float32 [d_model], what alpha = 1 adds.
        removed: float32 [k, d_model], the rows along which the old content is taken out; None for nothing.
        alpha_by_step: float32 [n_steps], alpha_t.
        keeps_norm: whether the result has the residual's own length.
        then: further edits of the same positions, ascending by boundary, none before this one; those at one boundary are done in order.
    """

    boundary: int
    scope: Scope
    window: int | None
    shift: FloatArray
    removed: FloatArray | None
    alpha_by_step: FloatArray
    keeps_norm: bool = False
    then: tuple[Patch, ...] = ()

    @property
    def constant(self) -> bool:
        """Whether alpha is the same at every step."""
        return bool((self.alpha_by_step == self.alpha_by_step[:1]).all())


@dataclass(frozen=True, eq=False)
class HeadPatch:
    """One attention head whose output, before the output projection, is replaced at the patched positions.

    The stream before the block is not edited, so the head's own keys and values stay clean.

    Attributes:
        boundary: the block that the head is in.
        scope, window: which positions.
        head: which of the block's query heads.
        replacement: float32 [head_dim].
    """

    boundary: int
    scope: Scope
    window: int | None
    head: int
    replacement: FloatArray
    constant: ClassVar[bool] = True


Intervention = Patch | HeadPatch


def each_edit(patch: Patch, change: Callable[[Patch], Patch]) -> Patch:
    """A patch whose every edit is changed alike."""
    return replace(change(patch), then=tuple(map(change, patch.then)))


def at_dose(condition: Condition, dose: float) -> Condition:
    """A condition whose alpha is a budget of damage, with the multiple of the direction that does this damage in its stead."""
    return replace(condition, alpha=dose, alpha_unit="vector")


def make_patch(
    condition: Condition, vector: FloatArray, basis: FloatArray | None, residual_norm: float, n_steps: int
) -> Patch:
    """The patch of a condition that injects `vector`.

    A vector v counts as the subspace of its unit vector u with the coordinate |v|. With an orthonormal basis B and the coordinates
    c = B'v, what is injected is B c; under `alpha_unit=residual`, it is rescaled to the typical norm of the residual stream at that
    layer. What is done with it is the operation's (steering.operations). A condition with `alpha_unit=kl` goes through `at_dose` first.

    Args:
        vector: float32 [d_model].
        basis: float32 [k, d_model] with orthonormal rows, or None.
        residual_norm: mean norm of the residual stream at the condition's layer and site.

    Raises:
        UserError: if the vector is zero or not finite, or the operation is one of a later version.
    """
    assert condition.layer is not None and condition.alpha is not None and condition.alpha_unit != "kl"
    where = f"the direction of {condition.emotion!r} at layer {condition.layer}"
    wide = vector.astype(np.float64)
    frame = None if basis is None else basis.astype(np.float64)
    injected = wide if frame is None else frame.T @ (frame @ wide)
    norm = float(np.linalg.norm(injected))
    if not np.isfinite(norm):
        raise UserError(f"{where} has values that are not finite: fit it again")
    if norm == 0:
        raise UserError(f"{where} is zero, so it cannot be injected: leave this layer out or fit it on other texts")
    if frame is None:
        frame = (wide / norm)[None]
    if condition.alpha_unit == "residual":
        injected = injected * (residual_norm / norm)
    edit, injection = operation(condition.operation), Injection(injected, frame)
    assert isinstance(edit, StreamEdit)
    shift, removed = edit.shift(injection), edit.removed(injection)
    return Patch(
        boundary=condition.layer + (condition.site == "resid_post"),
        scope=condition.scope,
        window=condition.patch_window,
        shift=np.zeros_like(vector, np.float32) if shift is None else shift.astype(np.float32),
        removed=None if removed is None else removed.astype(np.float32),
        alpha_by_step=(condition.alpha * schedule_factors(condition.alpha_schedule, n_steps)).astype(np.float32),
        keeps_norm=edit.keeps_norm,
    )


def _with_the_norm_of(hidden: Tensor, changed: Tensor) -> Tensor:
    """`changed` [..., d_model], each vector rescaled to the length of that of `hidden`; zero stays zero."""
    tiny, wide = torch.finfo(torch.float32).tiny, changed.float()
    wide = wide / wide.abs().amax(dim=-1, keepdim=True).clamp_min(tiny)  # or the squares of a large alpha overflow
    wanted, there = (torch.linalg.vector_norm(x.float(), dim=-1, keepdim=True) for x in (hidden, wide))
    return (wide / there.clamp_min(tiny) * wanted).to(changed.dtype)


class RowEdits:
    """The patches of a packed batch's rows as tensors on the model's device; rows without one are not changed."""

    def __init__(
        self, interventions: Sequence[Intervention | None], d_model: int, n_steps: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        patches = [item if isinstance(item, Patch) else None for item in interventions]
        rows = len(patches)
        rank = max((len(p.removed) for p in patches if p is not None and p.removed is not None), default=0)
        shift = np.zeros((rows, d_model), np.float32)
        removed = np.zeros((rows, rank, d_model), np.float32)
        alphas = np.zeros((rows, n_steps), np.float32)
        for row, patch in enumerate(patches):
            if patch is not None:
                shift[row], alphas[row] = patch.shift, patch.alpha_by_step
                if patch.removed is not None:
                    removed[row, : len(patch.removed)] = patch.removed
        self.shift = torch.from_numpy(shift).to(device=device, dtype=dtype)
        self.removed = torch.from_numpy(removed).to(device=device, dtype=dtype) if rank else None
        self.alpha_by_step = torch.from_numpy(alphas).to(device=device, dtype=dtype)
        keeps_norm = [patch is not None and patch.keeps_norm for patch in patches]
        self.keeps_norm = torch.tensor(keeps_norm, device=device) if any(keeps_norm) else None

    def keep(self, rows: Tensor) -> None:
        """Drops all rows but these."""
        self.shift, self.alpha_by_step = self.shift[rows], self.alpha_by_step[rows]
        self.removed = None if self.removed is None else self.removed[rows]
        self.keeps_norm = None if self.keeps_norm is None else self.keeps_norm[rows]

    def apply(self, hidden: Tensor, rows: slice, step: int) -> Tensor:
        """hidden [rows, q, d_model] as it is edited at step `step`."""
        change = (self.alpha_by_step[rows, step, None] * self.shift[rows])[:, None]
        if self.removed is not None:
            removed = self.removed[rows]
            change = change - torch.bmm(torch.bmm(hidden, removed.transpose(1, 2)), removed)
        changed = hidden + change
        if self.keeps_norm is not None:
            changed = torch.where(self.keeps_norm[rows, None, None], _with_the_norm_of(hidden, changed), changed)
        return changed


class FurtherEdits:
    """What a packed batch's rows of several edits do after their first one, by boundary, as tensors on the model's device."""

    def __init__(
        self, interventions: Sequence[Intervention | None], d_model: int, n_steps: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        rounds: dict[tuple[int, int], list[tuple[int, Patch]]] = {}
        for row, item in enumerate(interventions):
            before: Counter[int] = Counter()
            for patch in item.then if isinstance(item, Patch) else ():
                rounds.setdefault((patch.boundary, before[patch.boundary]), []).append((row, patch))
                before[patch.boundary] += 1
        self._boundaries: dict[int, list[tuple[Tensor, RowEdits]]] = {}
        for (boundary, _), members in sorted(rounds.items(), key=lambda item: item[0]):
            edits = RowEdits([patch for _, patch in members], d_model, n_steps, device, dtype)
            self._boundaries.setdefault(boundary, []).append((torch.tensor([row for row, _ in members], device=device), edits))

    def apply(self, boundary: int, hidden: Tensor, n_last: int, step: int) -> None:
        """Edits the last `n_last` positions in place; hidden [rows, q, d_model] of the batch's first rows, those edited here among them."""
        if n_last and boundary in self._boundaries:
            first = hidden.shape[1] - n_last
            for rows, edits in self._boundaries[boundary]:
                hidden[rows, first:] = edits.apply(hidden[rows, first:], slice(None), step)


class HeadEdits:
    """The replaced heads of a packed batch's rows, by block, as tensors on the model's device."""

    def __init__(self, interventions: Sequence[Intervention | None], device: torch.device, dtype: torch.dtype) -> None:
        by_block: dict[int, list[tuple[int, HeadPatch]]] = {}
        for row, item in enumerate(interventions):
            if isinstance(item, HeadPatch):
                by_block.setdefault(item.boundary, []).append((row, item))
        self._blocks = {
            block: (
                torch.tensor([row for row, _ in members], device=device),
                torch.tensor([patch.head for _, patch in members], device=device),
                torch.from_numpy(np.stack([patch.replacement for _, patch in members])).to(device=device, dtype=dtype),
            )
            for block, members in by_block.items()
        }

    def __contains__(self, block: int) -> bool:
        """Whether any row has a head replaced in this block."""
        return block in self._blocks

    def apply(self, block: int, mixed: Tensor, n_last: int) -> Tensor:
        """Replaces heads in the input of the block's output projection, at the last `n_last` positions.

        Args:
            mixed: [rows, q, n_heads * head_dim] of the batch's first rows, all whose head is in this block among them.
        """
        rows, heads, replacement = self._blocks[block]
        edited = mixed.unflatten(-1, (-1, replacement.shape[1])).clone()
        for position in range(edited.shape[1] - n_last, edited.shape[1]):
            edited[rows, position, heads] = replacement
        return edited.flatten(-2)

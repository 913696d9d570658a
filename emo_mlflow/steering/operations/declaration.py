"""What an operation declares: all that the rest of the package knows of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from emo_mlflow.types import FloatArray, HeadOperation, Operation

Sign = Literal[-1, 1]
Wide = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Injection:
    """A direction at one layer, in the unit that alpha multiplies.

    Attributes:
        vector: float64 [d_model], B c of docs/semantics.md: the direction, or its part in the subspace.
        basis: float64 [k, d_model] with orthonormal rows, B': the subspace, which is the unit vector of a single direction.
    """

    vector: Wide
    basis: Wide


@dataclass(frozen=True, eq=False)
class StreamEdit:
    """An operation on the residual stream.

    A residual h becomes  g = h + alpha * shift - removed' removed h,  and where the norm is kept  |h| g / |g|.

    Attributes:
        shift: what alpha = 1 adds, [d_model]; None for nothing.
        removed: rows [k, d_model] along which the old content is taken out; None for nothing.
        keeps_norm: whether the result is rescaled to the length that the residual had.
        zero_is_baseline: whether alpha = 0 leaves the stream as it is, so that the baseline is this operation's dose of zero.
        expected_sign: whether it raises (1) or lowers (-1) the emotion's own label, if it acts as supposed; at a positive alpha.
    """

    name: Operation
    shift: Callable[[Injection], Wide | None]
    removed: Callable[[Injection], Wide | None]
    keeps_norm: bool
    zero_is_baseline: bool
    expected_sign: Sign


@dataclass(frozen=True, eq=False)
class HeadReplacement:
    """An operation on an attention head: its output before the output projection becomes something else.

    Attributes:
        replacement: what it becomes, from the heads' means over the emotion's texts and over the reference's, both float32 [..., head_dim].
        continues_own_texts: whether texts of the emotion are continued, rather than the neutral ones.
        done: what was done to the head, as a report says it: "set to zero".
        zero_is_baseline: as for `StreamEdit`; a head is replaced in full, so it has no doses.
        expected_sign: as for `StreamEdit`.
    """

    name: HeadOperation
    replacement: Callable[[FloatArray, FloatArray], FloatArray]
    continues_own_texts: bool
    done: str
    expected_sign: Sign
    zero_is_baseline: bool = False


def nothing(_: Injection) -> None:
    """The shift of what adds nothing, and the rows of what removes nothing."""


def the_vector(injection: Injection) -> Wide:
    """The shift of what adds alpha times the direction."""
    return injection.vector


def the_subspace(injection: Injection) -> Wide:
    """The rows of what takes the direction's own subspace out."""
    return injection.basis

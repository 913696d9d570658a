"""Linear maps between two models' residual spaces, and how much of an emotion's subspace they carry over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import linalg

from emo_mlflow.directions.readouts import Floats, Mask, differences, leading_axes
from emo_mlflow.directions.subspaces import overlap
from emo_mlflow.types import FloatArray

RANK_TOLERANCE = 1e-6
PENALTIES = np.logspace(-6, 1, 15)  # of the largest eigenvalue of x'x


@dataclass(frozen=True, eq=False)
class AlignmentMap:
    """y - mean_b is approximated by (x - mean_a) @ matrix.

    Attributes:
        matrix: float64 [d_a, d_b].
        detail: the rank of a rotation, or the penalty of a ridge regression.
    """

    kind: str
    matrix: Floats
    mean_a: Floats
    mean_b: Floats
    detail: float

    def predict(self, x: Floats) -> Floats:
        """What model A's states [n, d_a] are in model B, [n, d_b]."""
        return (x - self.mean_a) @ self.matrix + self.mean_b


def procrustes(x: Floats, y: Floats) -> AlignmentMap:
    """The rotation, and one scale, that carry x nearest to y in the sum of squares (Schoenemann 1966, and its scaled form).

    Between different widths it is a partial isometry, U V' of the singular value decomposition of x'y; directions that x'y does not
    determine (singular values below its tolerance) are carried to zero and not anywhere.

    Args:
        x: float64 [n, d_a]; y: float64 [n, d_b], the same words in the other model.
    """
    mean_a, mean_b = x.mean(axis=0), y.mean(axis=0)
    left, singular, right = linalg.svd((x - mean_a).T @ (y - mean_b), full_matrices=False)
    rank = int((singular > RANK_TOLERANCE * singular[0]).sum())
    rotation = left[:, :rank] @ right[:rank]
    size = float((((x - mean_a) @ left[:, :rank]) ** 2).sum())
    scale = float(singular[:rank].sum()) / size if size else 0.0
    return AlignmentMap("procrustes", scale * rotation, mean_a, mean_b, float(rank))


def ridge(x: Floats, y: Floats) -> AlignmentMap:
    """The linear map with the least squared error and an L2 penalty, chosen by generalised cross-validation (Golub et al. 1979)."""
    mean_a, mean_b = x.mean(axis=0), y.mean(axis=0)
    squares, vectors = linalg.eigh((x - mean_a).T @ (x - mean_a))
    squares, n = np.maximum(squares, 0), len(x)
    on_axes = vectors.T @ ((x - mean_a).T @ (y - mean_b))
    power, total = (on_axes**2).sum(axis=1), float(((y - mean_b) ** 2).sum())
    penalties = PENALTIES * squares[-1]

    def score(penalty: float) -> float:
        shrunk = 1 / (squares + penalty)
        residual = total - float((power * shrunk * (2 - squares * shrunk)).sum())
        return residual / max(1.0 - (float((squares * shrunk).sum()) + 1) / n, 1e-9) ** 2

    best = float(penalties[int(np.argmin([score(penalty) for penalty in penalties]))])
    return AlignmentMap("ridge", vectors @ (on_axes / (squares + best)[:, None]), mean_a, mean_b, best)


MAPS: dict[str, Callable[[Floats, Floats], AlignmentMap]] = {"procrustes": procrustes, "ridge": ridge}


def held_out_fit(found: AlignmentMap, x: Floats, y: Floats) -> dict[str, float]:
    """How well a map predicts words that it was not fitted on.

    Returns:
        r2: share of y's variance about the fitted mean; r2_median: the median over y's dimensions, which a few dimensions of huge
        variance cannot carry; cosine: mean cosine between predicted and true, both centred.
    """
    predicted, truth = found.predict(x) - found.mean_b, y - found.mean_b
    error, spread = ((truth - predicted) ** 2).sum(axis=0), (truth**2).sum(axis=0)
    norms = np.linalg.norm(predicted, axis=1) * np.linalg.norm(truth, axis=1)
    cosines = (predicted * truth).sum(axis=1)[norms > 0] / norms[norms > 0]
    used = spread > 0
    return {
        "r2": float(1 - error.sum() / spread.sum()) if used.any() else float("nan"),
        "r2_median": float(np.median(1 - error[used] / spread[used])) if used.any() else float("nan"),
        "cosine": float(cosines.mean()) if len(cosines) else float("nan"),
    }


def orthonormal(rows: Floats) -> Floats:
    """An orthonormal basis of rows [..., k, d] whose leading j rows span the leading j; rows that add nothing become zero."""
    basis = np.zeros(rows.shape)
    smallest = 1e-9 * np.linalg.norm(rows, axis=-1).max(axis=-1)
    for j in range(rows.shape[-2]):
        left = rows[..., j, :]
        # Gram-Schmidt, once more for what rounding left; QR would spend a dimension on a row that adds none.
        for _ in range(2):
            left = left - np.einsum("...k,...kd->...d", np.einsum("...kd,...d->...k", basis, left), basis)
        size = np.linalg.norm(left, axis=-1)
        real = size > smallest
        basis[..., j, :] = left * np.where(real, 1 / np.where(real, size, 1.0), 0.0)[..., None]
    return basis


def as_they_are(rows: Floats, d: int) -> Floats:
    """Rows [..., k, d_a] put into a space of width d without a map: cut off or filled up with zeros."""
    kept = rows[..., :d]
    return np.pad(kept, [(0, 0)] * (rows.ndim - 1) + [(0, d - kept.shape[-1])])


def subspace_overlaps(mapped: Floats, own: Floats) -> Floats:
    """Overlap for k = 1..K of subspaces [..., K, d], whose rows need not be orthonormal, with an orthonormal basis [K, d]."""
    return overlap(orthonormal(mapped) @ own.T)


def halves(labels: Sequence[str], seed: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Two disjoint halves of the texts, each with half of every label's.

    One model's subspace is fitted on the one half and the other model's on the other: fitted on the same texts, two models would agree
    about what these texts happen to say.
    """
    generator = np.random.default_rng([seed, len(labels)])
    names = np.array(labels)
    first = np.zeros(len(names), bool)
    for name in dict.fromkeys(labels):
        members = generator.permutation(np.flatnonzero(names == name))
        first[members[: len(members) // 2]] = True
    return np.flatnonzero(first), np.flatnonzero(~first)


def permuted_axes(x: Floats, positive: Mask, k: int, n_permutations: int, seed: int) -> FloatArray:
    """Principal axes as they come out when the labels are shuffled, float32 [n_permutations, k, d].

    What is shuffled are residuals from the classes' means (ter Braak 1992): the texts themselves differ most along the emotion
    whichever of them are called so, and axes of shuffled texts would still be the emotion's.
    """
    generator = np.random.default_rng([seed, *x.shape])
    residuals = np.where(positive[:, None], x - x[positive].mean(axis=0), x - x[~positive].mean(axis=0))
    found = np.zeros((n_permutations, k, x.shape[1]), np.float32)
    for draw in range(n_permutations):
        found[draw] = leading_axes(differences(residuals, generator.permutation(positive)), k)[0]
    return found


@dataclass(frozen=True, eq=False)
class Null:
    """What overlaps are compared with, float64 [n_draws, K] each: random subspaces, and model A's of shuffled labels, mapped."""

    random: Floats
    permuted: Floats

    def columns(self, observed: Floats) -> dict[str, Floats]:
        """Means, 95% quantiles and p-values of the observed overlaps [K] under both, by column name."""
        found: dict[str, Floats] = {}
        for prefix, draws in (("null", self.random), ("permuted", self.permuted)):
            reached = (draws >= observed - 1e-12).sum(axis=0)
            found[f"{prefix}_mean"] = draws.mean(axis=0)
            found[f"{prefix}_q95"] = np.quantile(draws, 0.95, axis=0)
            found[f"{prefix}_p"] = (1 + reached) / (len(draws) + 1)
        return found

"""`clamp`: h + (alpha |v| - h.u) u, so that every residual has alpha times the direction's own coordinate."""

from __future__ import annotations

from emo_mlflow.steering.operations.declaration import StreamEdit, the_subspace, the_vector

CLAMP = StreamEdit(
    name="clamp",
    shift=the_vector,
    removed=the_subspace,
    keeps_norm=False,
    zero_is_baseline=False,
    expected_sign=1,
)

"""`project_out`: h - (h.u) u, whatever alpha is."""

from __future__ import annotations

from emo_mlflow.steering.operations.declaration import StreamEdit, nothing, the_subspace

PROJECT_OUT = StreamEdit(
    name="project_out",
    shift=nothing,
    removed=the_subspace,
    keeps_norm=False,
    zero_is_baseline=False,
    expected_sign=-1,
)

"""`add`: h + alpha v."""

from __future__ import annotations

from emo_mlflow.steering.operations.declaration import StreamEdit, nothing, the_vector

ADD = StreamEdit(
    name="add", shift=the_vector, removed=nothing, keeps_norm=False, zero_is_baseline=True, expected_sign=1
)

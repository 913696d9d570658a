"""`add_keep_norm`: |h| (h + alpha v) / |h + alpha v|, which turns the residual towards v and leaves its length alone."""

from __future__ import annotations

from emo_mlflow.steering.operations.declaration import StreamEdit, nothing, the_vector

ADD_KEEP_NORM = StreamEdit(
    name="add_keep_norm", shift=the_vector, removed=nothing, keeps_norm=True, zero_is_baseline=True, expected_sign=1
)

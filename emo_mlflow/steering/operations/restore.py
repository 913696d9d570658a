"""`restore`: while texts of the emotion are continued, the head writes what it writes for neutral ones on average."""

from __future__ import annotations

from emo_mlflow.steering.operations.declaration import HeadReplacement

RESTORE = HeadReplacement(
    name="restore",
    replacement=lambda own, reference: reference,
    continues_own_texts=True,
    done="replaced by its mean over neutral texts, while texts of the emotion are continued",
    expected_sign=-1,
)

"""`mean`: the head writes what it writes for neutral texts on average, whatever it reads."""

from __future__ import annotations

from emo_mlflow.steering.operations.declaration import HeadReplacement

MEAN = HeadReplacement(
    name="mean",
    replacement=lambda own, reference: reference,
    continues_own_texts=False,
    done="replaced by its mean over neutral texts",
    expected_sign=-1,
)

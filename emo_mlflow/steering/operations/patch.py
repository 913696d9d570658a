"""`patch`: the head writes what it writes for the emotion's texts on average."""

from __future__ import annotations

from emo_mlflow.steering.operations.declaration import HeadReplacement

PATCH = HeadReplacement(
    name="patch",
    replacement=lambda own, reference: own,
    continues_own_texts=False,
    done="replaced by its mean over the emotion's texts",
    expected_sign=1,
)

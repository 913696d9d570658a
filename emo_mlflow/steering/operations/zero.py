"""`zero`: the head writes nothing."""

from __future__ import annotations

import numpy as np

from emo_mlflow.steering.operations.declaration import HeadReplacement

ZERO = HeadReplacement(
    name="zero",
    replacement=lambda own, reference: np.zeros_like(reference),
    continues_own_texts=False,
    done="set to zero",
    expected_sign=-1,
)

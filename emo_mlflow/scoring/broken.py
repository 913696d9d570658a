"""What counts as broken text: loops and word salad, as readers call it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from emo_mlflow.statistics.moments import Floats

DISTINCT = 0.8  # of 224 labelled texts, 95% of the broken ones and 7% of the others have fewer distinct pairs of words
LIMIT = 0.5


def broken(texts: Sequence[str]) -> Floats:
    """1 for a text that readers would call broken, else 0, [texts]."""
    return np.array([float(_distinct_pairs(text) < DISTINCT) for text in texts])


def _distinct_pairs(text: str) -> float:
    pairs = list(pairwise(text.split()))
    return len(set(pairs)) / len(pairs) if pairs else 1.0

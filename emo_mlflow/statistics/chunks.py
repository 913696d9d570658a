"""Work on many tests, cut into pieces that fit a core's cache."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import ThreadpoolController

from emo_mlflow.statistics.moments import Floats

CHUNK = 256  # tests: 2,000 float32 replicates of each are 2 MB


def in_chunks(work: Callable[[slice], dict[str, Floats]], n_tests: int) -> dict[str, Floats]:
    """Runs `work` on slices of the tests, on as many threads as there are cores, and puts its columns together."""
    slices = [slice(start, start + CHUNK) for start in range(0, n_tests, CHUNK)]
    # BLAS threads of their own under each of ours would wait for each other: measured, four times slower.
    with _libraries().limit(limits=1, user_api="blas"), ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = list(pool.map(work, slices))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@functools.cache
def _libraries() -> ThreadpoolController:
    """The process's numerical libraries, NumPy's BLAS among them. To look for them takes 4 ms, more than most tests do."""
    return ThreadpoolController()

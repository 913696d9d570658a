"""The folder that keeps what is made once: models, exported scorers, unfinished sweeps."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """Where models, exports and unfinished sweeps are kept: $EMO_MLFLOW_CACHE, or the platform's cache folder.

    It is made here, for its owner alone. If it cannot be made, the first write there says so.
    """
    folder = Path(os.environ.get("EMO_MLFLOW_CACHE") or platformdirs.user_cache_dir("emo_mlflow"))
    with suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder

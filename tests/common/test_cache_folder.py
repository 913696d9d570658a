"""The cache folder."""

from __future__ import annotations

import os
import stat

from emo_mlflow.common.cache_folder import cache_folder


def test_what_is_cached_is_for_its_owner_alone(tmp_path, monkeypatch):
    """Guards: texts and scores of a study that every user of a shared machine can read."""
    monkeypatch.setenv("EMO_MLFLOW_CACHE", str(tmp_path / "cache"))
    before = os.umask(0o022)
    try:
        folder = cache_folder()
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700

"""Text means kept in the cache folder: the second command on a model and its texts does not run them again."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from emo_mlflow.common.cache_folder import cache_folder
from emo_mlflow.types import FloatArray, digest

MOST_BYTES = 2 * 2**30  # of all that is kept; what was used longest ago goes first


def kept_folder() -> Path:
    """Where they are."""
    return cache_folder() / "means"


@dataclass(frozen=True)
class Kept:
    """The file of one set of means."""

    path: Path

    @classmethod
    def of(cls, key: Any) -> Kept:
        """The file of what `key` decides: weights, number format, site, aggregation and token ids."""
        return cls(kept_folder() / f"{digest(key, 32)}.safetensors")

    def read(self, shape: tuple[int, int, int]) -> tuple[FloatArray, FloatArray] | None:
        """Means and norms, if they are there and of this shape [n_texts, n_layers, d_model]; a damaged file counts as none."""
        try:
            tensors = load_file(self.path)
            means, norms = tensors["means"], tensors["norms"]
        except (OSError, SafetensorError, KeyError):
            return None
        if means.shape != shape or norms.shape != shape[:2]:
            return None
        with suppress(OSError):
            os.utime(self.path)
        return means, norms

    def write(self, means: FloatArray, norms: FloatArray) -> None:
        """Keeps them if the folder can be written to; the file appears whole or not at all."""
        with suppress(OSError, SafetensorError):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.path.parent) as folder:
                draft = Path(folder) / "means.safetensors"
                save_file({"means": means, "norms": norms}, str(draft))
                os.replace(draft, self.path)
            self._make_room()

    def _make_room(self) -> None:
        files = sorted(self.path.parent.glob("*.safetensors"), key=lambda path: path.stat().st_mtime, reverse=True)
        used = 0
        for path in files:
            used += path.stat().st_size
            if used > MOST_BYTES and path != self.path:
                path.unlink(missing_ok=True)

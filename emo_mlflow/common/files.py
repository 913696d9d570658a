"""Files: their digest, and their names on disk."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from emo_mlflow.errors import UserError


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            found.update(chunk)
    return found.hexdigest()

def sync_folder(folder: Path) -> None:
    """Puts a folder's list of names on disk, where the system allows it (Windows does not)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_there(path: Path, parameter: str) -> None:
    """Refuses a file that is not there, and says where it was looked for: `mlflow run` starts in the project's folder.

    Raises:
        UserError: naming the parameter, the path as it was given, and the whole path.
    """
    if not path.is_file():
        raise UserError(f"{parameter}={str(path)!r} does not exist, or is no file: looked for {path.absolute()}")

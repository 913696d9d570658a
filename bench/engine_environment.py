"""The environments of the libraries that bench/engine.py compares with, and the process that runs one of them there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Peer -> the package whose environment it runs in, with the torch and transformers that this package's installation chooses.
ENVIRONMENT_OF = {
    "transformer_lens": "transformer_lens",
    "transformer_lens, batch of 8": "transformer_lens",
    "transformer_lens uncached": "transformer_lens",
    "nnsight, batch of 8": "nnsight",
    "pyvene, batch of 8": "pyvene",
    "steering-vectors": "steering-vectors",
    "transformers hooks": "steering-vectors",
    "transformers hooks, batch of 8": "steering-vectors",
}


class PeerProcess:
    """A library, in a process of its environment; waits without work while others are measured.

    Args:
        program: a file of this folder, which answers a JSON line with a JSON line, and sends its versions first.
    """

    def __init__(self, python: Path, program: str, *words: str) -> None:
        command = [str(python), str(Path(__file__).with_name(program)), *words]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.versions = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return dict(json.loads(line)) if line else {"error": "the peer's process has ended"}

    def run(self, **request: Any) -> dict[str, Any]:
        """seconds and texts of one condition, or error."""
        assert self.process.stdin is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)


def peer_python(folder: Path, package: str, beside: Sequence[str] = ("torch", "transformers")) -> Path:
    """The interpreter of a package's environment below `folder`, made if it is not there, with what it needs beside it."""
    place = folder / package
    python = place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    done = place / "installed"
    if not done.exists():
        print(f"installing {package} into {place}", file=sys.stderr)
        venv.create(place, with_pip=True, clear=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", package, *beside], check=True)
        done.touch()
    return python

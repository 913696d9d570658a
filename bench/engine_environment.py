"""The environment of the libraries that bench/engine.py compares with, and the process that runs them there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import version
from pathlib import Path
from typing import Any

SHARED = ("torch", "transformers", "tokenizers", "huggingface_hub", "numpy", "pandas", "pyarrow", "safetensors", "accelerate")


class PeerProcess:
    """The other libraries, in a process of their environment; waits without work while ours is measured."""

    def __init__(self, python: Path, work: str, clock: str) -> None:
        command = [str(python), str(Path(__file__).with_name("engine_peers.py")), work, clock]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.versions = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return dict(json.loads(line)) if line else {"error": "the peers' process has ended"}

    def run(self, name: str, direction: int, layer: int, window: int) -> dict[str, Any]:
        """seconds and texts of one condition, or error."""
        assert self.process.stdin is not None
        request = {"name": name, "direction": direction, "layer": layer, "window": window}
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)


def peers_python(folder: Path) -> Path:
    """The interpreter of the peers' environment, made if it is not there: this environment's packages, and the peers in front."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    done = folder / "installed"
    if not done.exists():
        print(f"installing the peers into {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        purelib = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True)
        (Path(purelib.strip()) / "parent.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        constraints = folder / "constraints.txt"
        constraints.write_text("".join(f"{name}=={version(name)}\n" for name in SHARED), encoding="utf-8")
        command = [python, "-m", "pip", "install", "--quiet", "-c", constraints, "transformer_lens", "steering-vectors"]
        subprocess.run([str(part) for part in command], check=True)
        done.touch()
    return python

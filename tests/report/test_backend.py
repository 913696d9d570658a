"""Figures are files, whatever the user's matplotlib draws on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "nonsense", "svg"])
def test_figures_do_not_depend_on_the_users_backend(backend: str, tmp_path: Path) -> None:
    """Guards: a run started from Jupyter that ends with a traceback of matplotlib's import."""
    code = """
from emo_mlflow.report import figures
import os
from matplotlib.figure import Figure
figure = Figure()
figure.add_subplot()
figure.savefig("figure.png")
print(os.environ["MPLBACKEND"])
"""
    environment = {**os.environ, "MPLBACKEND": backend}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0 and done.stdout.strip() == backend, done.stderr
    assert (tmp_path / "figure.png").stat().st_size > 1000

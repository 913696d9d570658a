"""The benchmark of the engine runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "engine.py"


@pytest.mark.slow
def test_the_engine_benchmark_runs():
    """Guards: a benchmark that nobody has run since the engine changed."""
    ran = subprocess.run(
        [sys.executable, BENCH, "--quick", "--scopes", "window", "--profile"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    assert "limit with likelihoods" in ran.stdout and "profile, scope window" in ran.stdout

"""The benchmarks run, and what they simulate is what the package does."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from emo_mlflow.statistics.sequential import Looks, duel

BENCH = Path(__file__).parents[2] / "bench"


@pytest.mark.slow
def test_the_engine_benchmark_runs():
    """Guards: a benchmark that nobody has run since the engine changed."""
    ran = subprocess.run(
        [sys.executable, BENCH / "engine.py", "--quick", "--scopes", "window", "--profile"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    assert "limit with likelihoods" in ran.stdout and "profile, scope window" in ran.stdout


@pytest.mark.slow
def test_bands_are_measured_beside_single_edits():
    """Guards: a benchmark that nobody has run since the engine changed."""
    words = [sys.executable, BENCH / "engine.py", "--quick", "--scopes", "generated", "--bands", "1"]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert "a band of 3 takes" in ran.stdout and "layers edited: 3" in ran.stdout


@pytest.mark.slow
def test_the_designs_of_a_study_are_compared():
    """Every row is there, no error is above what is promised by more than chance, and that two kinds of designs are invalid shows."""
    ran = subprocess.run(
        [sys.executable, BENCH / "study_designs.py", "--quick"], capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    rows = [[cell.strip() for cell in line.split("| ")] for line in ran.stdout.splitlines() if " to " in line]
    errors = {row[1]: float(row[2]) for row in rows}
    invalid = [name for name in errors if name.startswith(("t fitted", "screen"))]
    assert len(errors) == 23 and len(invalid) == 4
    chance = 3 * np.sqrt(0.05 * 0.95 / 300)
    assert all(error <= 0.05 + chance for name, error in errors.items() if name not in invalid), errors
    assert np.mean([errors[name] for name in invalid]) > 0.05 + chance, errors


def test_simulated_comparisons_are_the_packages():
    """Guards: a table of designs that is not of the test which the package does."""
    spec = importlib.util.spec_from_file_location("study_designs", BENCH / "study_designs.py")
    designs = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(designs)
    looks = Looks((5, 10, 40), clear=1.2)
    values = designs.scores(np.random.default_rng(0), (20, 8), 40, np.array([1.0, 0.5]), 0.8)
    beaten, used = designs.compared(values, looks)
    for (world, draw), won in np.ndenumerate(beaten):
        found = duel(values[world, 0], values[world, 1 + draw], looks)
        assert (found.outcome == "beaten", found.prompts) == (won, used[world, draw])

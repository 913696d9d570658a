"""Logged models load where this package is not installed, and say nothing of the machine that made them."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from emo_mlflow.evaluators.pyfunc import log_scorer
from packaging.requirements import Requirement
from tiny_scorers import write_scorer

import emo_mlflow
from emo_mlflow.serving.portable import OF_SCORING, pins

# Takes this package off of the path that finds it, as in an environment that was made from requirements.txt alone.
WITHOUT = """
import importlib.util, sys
from pathlib import Path
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
sys.path[:] = [entry for entry in sys.path if entry and not (Path(entry) / "emo_mlflow").exists()]
assert importlib.util.find_spec("emo_mlflow") is None
"""


def run_without(code: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", WITHOUT + code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd="/", check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def scorer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a logged scorer."""
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    info = log_scorer(str(write_scorer(tmp_path / "scorer")))
    return Path(mlflow.artifacts.download_artifacts(info.model_uri, dst_path=str(tmp_path / "downloaded")))


def test_a_logged_scorer_brings_its_code_along(scorer: Path, tmp_path: Path) -> None:
    """Guards: `emo-mlflow was not found in the package registry`, and paths of the machine that logged it."""
    for file in ("MLmodel", "requirements.txt", "conda.yaml", "python_env.yaml"):
        assert str(tmp_path) not in (scorer / file).read_text() and "/tmp" not in (scorer / file).read_text(), file
    needed = (scorer / "requirements.txt").read_text().split()
    assert sorted(needed) == sorted(pins()[name] for name in OF_SCORING)
    code = f"""
import mlflow, pandas as pd, json
model = mlflow.pyfunc.load_model({str(scorer)!r})
print(json.dumps(model.predict(pd.DataFrame({{"text": ["one two", "two"]}})).to_dict("list")))
import emo_mlflow
assert emo_mlflow.__file__.startswith({str(scorer)!r})
"""
    found = json.loads(run_without(code).splitlines()[-1])
    expected = emo_mlflow.score(["one two", "two"], str(tmp_path / "scorer"))
    assert found == {name: [pytest.approx(value) for value in expected[name]] for name in expected}
    assert not list(scorer.rglob("embedded"))


def test_scoring_needs_what_is_pinned(tmp_path: Path) -> None:
    """Guards: a need of the scorer's code that its requirements leave to chance."""
    code = "import sys, emo_mlflow.evaluators.served_model; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True).stdout.split()
    owners = importlib.metadata.packages_distributions()
    found = {owner.lower() for name in loaded for owner in owners.get(name, ())}
    ours = {Requirement(line).name for line in importlib.metadata.requires("emo_mlflow") or () if "extra" not in line}
    of_mlflow = {Requirement(line).name.lower() for line in importlib.metadata.requires("mlflow") or ()} | {"requests", "tqdm", "click"}
    assert {name for name in ours if name in found} - of_mlflow <= set(OF_SCORING) <= ours

"""A study whose texts are written on a real Ray of two nodes: the same answer as in one process."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from places import write_worded_texts
from ray_nodes import environment, two_nodes
from tiny_models import save_tiny
from tiny_scorers import write_scorer

from emo_mlflow.cli.main import main
from emo_mlflow.scoring.cards import Head

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'emo_mlflow[ray]'")
WORDS = {"gratitude": "you and the", "anger": "ring thin hour", "neutral": "stone brick road"}
BASIC = ["study", "--model", "model", "--dataset", "data.jsonl", "--scorers", "scorer", "--device", "cpu", "--sequence-length", "4"]
BASIC += ["--items", "items.jsonl", "--max-samples", "8", "--alpha", "0.05", "--procedure", "sequence"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a model, a scorer, a data set and items, and an environment for nodes."""
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/store.db")
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "model", "llama")
    write_scorer(tmp_path / "scorer", (Head("goemotions", ("gratitude", "anger"), "sigmoid", "logits", temperature=2.0),))
    write_worded_texts(tmp_path, WORDS, n_fit=12, n_test=8)
    items = [{"question": f"stone {i}", "choices": ["you", "ring", "and"], "answer": i % 3} for i in range(8)]
    (tmp_path / "items.jsonl").write_text("\n".join(json.dumps(item) for item in items))
    return tmp_path


def tables(*more: str) -> dict[str, pd.DataFrame]:
    result = CliRunner().invoke(main, [*BASIC, *more])
    assert result.exit_code == 0, result.output
    run_id = next(line.split()[1] for line in result.output.splitlines() if line.startswith("Run "))
    folder = Path(MlflowClient().download_artifacts(run_id, ""))
    assert MlflowClient().get_run(run_id).info.status == "FINISHED"
    return {name: pd.read_parquet(folder / f"{name}.parquet") for name in ("verdicts", "conditions", "completions", "others")}


@needs_ray
@pytest.mark.slow
def test_a_study_on_a_cluster_is_the_study_of_one_process(place):
    """Every text is written once, and is the same; so are the tests, which ask for texts as they go."""
    local = tables()
    with two_nodes() as (address, _):
        ray = tables("--engine", "ray", "--ray-address", address)
    assert len(local["completions"]) > 40
    for name, table in local.items():
        pd.testing.assert_frame_equal(ray[name], table, rtol=1e-6, atol=1e-7)

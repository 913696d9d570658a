"""A GGUF file as its user gives it: a sweep and a vectors run on it, whose params say how it was quantised."""

from __future__ import annotations

from click.testing import CliRunner
from gguf_models import of_pieces, write_gguf
from mlflow import MlflowClient
from places import write_texts
from tiny_scorers import write_scorer

from emo_mlflow.cli.main import main


def test_the_quantisation_is_a_param_of_the_run(tmp_path, monkeypatch):
    """Guards: a run of 4-bit weights that nobody can tell from one of the published ones."""
    monkeypatch.setenv("EMO_MLFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/store.db")
    monkeypatch.chdir(tmp_path)
    write_gguf(tmp_path / "tiny.gguf", of_pieces())
    write_scorer(tmp_path / "scorer")
    write_texts(tmp_path, ("joy", "neutral"))
    common = ["--model", "tiny.gguf", "--dataset", "data.jsonl", "--device", "cpu"]
    small = ["--scorers", "scorer", "--layers", "1", "--alphas", "1", "--num-random", "0", "--sequence-length", "4", "--max-samples", "2"]
    for words in (["sweep", *common, *small], ["vectors", *common, "--components", "1"]):
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, result.output
        run_id = next(line.split()[1] for line in result.output.splitlines() if line.startswith("Run "))
        params = MlflowClient().get_run(run_id).data.params
        assert params["model.quantisation"] == "Q8_0 16, F32 5" and params["config.model"] == "tiny.gguf"

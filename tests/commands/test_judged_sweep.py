"""A sweep that a judge and a logged model score: what is logged, and that a judge which goes away costs no text."""

from __future__ import annotations

import re

import numpy as np
import pytest
from click.testing import CliRunner
from emo_mlflow.evaluators.pyfunc import log_scorer
from judges import JudgeServer, write_rubric
from mlflow import MlflowClient
from places import write_texts
from tiny_models import save_tiny
from tiny_scorers import write_scorer

from emo_mlflow import find_sweeps, load_sweep
from emo_mlflow.cli.main import main
from emo_mlflow.scoring import judge
from emo_mlflow.tracking.store import as_active


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("EMO_MLFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name, value in {"PATIENCE": 0.3, "FIRST_PATIENCE": 0.2, "FIRST_PAUSE": 0.05}.items():
        monkeypatch.setattr(judge, name, value)
    save_tiny(tmp_path / "model", "gpt2")
    write_texts(tmp_path, ("gratitude", "neutral"))
    return tmp_path


@pytest.fixture
def server():
    server = JudgeServer(lambda text: "no idea" if len(text) % 5 == 0 else f'{{"gratitude": {len(text) % 3}, "warmth": 0.5}}')
    yield server
    server.close()


def sweep(place, scorers: str, *more: str):
    words = [
        "sweep", "--model", str(place / "model"), "--dataset", str(place / "data.jsonl"), "--scorers", scorers, "--layers", "1,2", "--alphas", "1,6",
        "--sequence-length", "6", "--max-samples", "3", "--num-random", "1", "--device", "cpu", "--tracking-uri", uri(place), *more,
    ]  # fmt: skip
    result = CliRunner().invoke(main, words)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def uri(place) -> str:
    return f"sqlite:///{place}/store.db"


def test_a_judges_numbers_are_metrics_like_others_and_its_cost_is_logged(place, server):
    """Beside a logged model, from the store that the sweep is logged to."""
    with as_active(uri(place)):
        log_scorer(str(write_scorer(place / "tiny")), registered_model_name="tiny-model")
    result = sweep(place, f"models:/tiny-model/1,{server.scorer(write_rubric(place))}")
    assert result.exit_code == 0, result.output
    found = load_sweep(find_sweeps(tracking_uri=uri(place))["run_id"].iloc[0], uri(place))
    texts = dict(zip(found.completions["completion"], found.scores["judge.gratitude"], strict=True))
    expected = [np.nan if len(text) % 5 == 0 else len(text) % 3 for text in texts]
    np.testing.assert_array_equal(list(texts.values()), expected)
    assert {"judge.gratitude", "judge.warmth", "tone.low", "fluency.broken"} <= set(found.effects["metric"])
    metrics = MlflowClient(uri(place)).get_run(found.run_id).data.metrics
    assert metrics["judge.judge.calls"] == len(server.requests) == len({*texts, "", "I thank you."})
    assert metrics["judge.judge.unreadable"] == sum(len(text) % 5 == 0 for text in {*texts, "", "I thank you."})
    assert metrics["judge.judge.seconds"] > 0
    report = found._fetch("report.md").read_text(encoding="utf-8")
    assert "How well the scorer judge agrees with readers" in report


@pytest.mark.parametrize("trouble", ["away", 429, "html", "limit"])
def test_a_judge_that_stops_while_texts_are_scored_costs_no_text(place, server, trouble):
    """Guards: an hour of generation lost to a judge, and texts that are written or asked about again."""
    name, limit = server.scorer(write_rubric(place)), ["--judge-max-calls", "5"] if trouble == "limit" else []
    if trouble != "limit":
        server.fault = lambda i: trouble if i >= 5 and trouble != "away" else None
    if trouble == "away":
        server.fault = lambda i: server.close() if i == 4 else 503 if i > 4 else None
    first = sweep(place, name, *limit)
    assert first.exit_code == 2 and "Error: " in first.output and "Traceback" not in first.output, first.output
    run_id = re.search(r"Run +(\w{32})", first.output)[1]
    assert f"--resume {run_id}" in first.output
    asked = len(server.asked)
    if trouble == "away":
        return  # nobody is there to go on with
    server.fault = lambda i: None
    again = CliRunner().invoke(main, ["sweep", "--resume", run_id, "--tracking-uri", uri(place), *(["--judge-max-calls", "1000"] if limit else [])])
    assert again.exit_code == 0, again.output
    found = load_sweep(run_id, uri(place))
    assert len(found.scores) == len(found.completions) and len(server.asked) == len(set(server.asked)) > asked


def test_mistakes_before_anything_is_generated(place, server):
    name = server.scorer(write_rubric(place))
    for scorers, more, message in (
        ("judge:http://127.0.0.1:9/v1?model=m&rubric=absent.yaml", (), "cannot read the rubric absent.yaml"),
        (f"judge:http://127.0.0.1:9/v1?model=m&rubric={place / 'rubric.yaml'}", (), "does not answer"),
        (name, ("--judge-max-calls", "0"), "judge_max_calls='0' is not a whole number of at least 1"),
        ("models:/absent/1", (), "cannot load the scorer models:/absent/1"),
    ):
        result = sweep(place, scorers, *more)
        assert result.exit_code == 2 and message in result.output, (scorers, result.output)
    study = CliRunner().invoke(main, ["study", "--model", str(place / "model"), "--scorers", name, "--tracking-uri", uri(place)])
    assert study.exit_code == 2 and "judge its texts in a sweep" in study.output, study.output

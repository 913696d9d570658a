"""What a run found in the table of runs: tags, and the experiment's saved view."""

from __future__ import annotations

import json

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from emo_mlflow.tracking.answers import VIEW, VIEW_LENGTH, log_answers, widened


@pytest.fixture
def client(tmp_path):
    return MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")


def view_of(client, experiment_id):
    envelope = json.loads(client.get_experiment(experiment_id).tags[VIEW])
    return envelope, json.loads(envelope["state"])


def test_runs_of_different_emotions_share_a_view(client):
    experiment_id = client.create_experiment("study")
    for answers in ({"anger": "+0.10, L3 \u03b11"}, {"anger": "not shown, +0.00", "ruhe \u0928\u093f": "specific, +0.20"}):
        run_id = client.create_run(experiment_id).info.run_id
        log_answers(client, run_id, answers)
        tags = client.get_run(run_id).data.tags
        assert [text for key, text in tags.items() if key.startswith("emo.answer.")] == list(answers.values())
    envelope, state = view_of(client, experiment_id)
    assert envelope["name"] == "Answers" and envelope["createdAt"] <= envelope["updatedAt"]
    columns = [f"tags.`{key}`" for key in tags if key.startswith("emo.answer.")]
    assert state["selectedColumns"] == columns and state["columnOrder"][-2:] == columns
    assert set(state["columnWidths"]) == set(state["columnOrder"])


def test_what_a_person_changed_in_the_view_stays():
    """MLflow saves a person's view in the same place: as they left it, and compressed when it is long."""
    state = {"selectedColumns": ["params.`layer`"], "columnOrder": ["duration"], "searchFilter": "metrics.x > 1"}
    mine = json.dumps({"name": "Mine", "createdAt": 1, "updatedAt": 2, "state": json.dumps(state)})
    envelope = json.loads(widened(mine, ["tags.`emo.answer.joy`"], 3))
    assert (envelope["name"], envelope["createdAt"], envelope["updatedAt"]) == ("Mine", 1, 3)
    new = json.loads(envelope["state"])
    assert new["selectedColumns"] == ["params.`layer`", "tags.`emo.answer.joy`"] and new["searchFilter"] == "metrics.x > 1"
    assert widened(mine, ["params.`layer`"], 3) == mine
    assert widened(json.dumps({"name": "Mine", "createdAt": 1, "state": "deflate;eJw="}), ["params.`layer`"], 3) is None


def test_a_store_that_refuses_the_view_costs_nothing(client, monkeypatch):
    def refuse(*args):
        raise MlflowException("no permission")

    monkeypatch.setattr(client, "set_experiment_tag", refuse)
    run_id = client.create_run("0").info.run_id
    log_answers(client, run_id, {"joy": "+0.10"})
    assert client.get_run(run_id).data.tags["emo.answer.joy"] == "+0.10"


def test_a_view_that_would_be_too_long_stays_as_it_is(client):
    run_id = client.create_run("0").info.run_id
    log_answers(client, run_id, {"joy": "+0.10"})
    before = view_of(client, "0")
    log_answers(client, run_id, {f"{'x' * 80}{i}": "+0.10" for i in range(40)})
    assert view_of(client, "0") == before and len(json.dumps(before)) < VIEW_LENGTH

"""What goes into a run goes in the batches, lengths and numbers that MLflow takes."""

from __future__ import annotations

import math

from mlflow import MlflowClient

from emo_mlflow.tracking.values import A_BATCH, PARAM_LENGTH, log_values, metric_name


def test_more_than_a_request_holds(tmp_path):
    """MLflow refuses a request with more than 1,000 metrics or 100 params, a param of more than 6,000 characters, and SQL stores change a NaN."""
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    run_id = client.create_run("0").info.run_id
    params = {f"p{i}": (1, "b") if i else "x" * (PARAM_LENGTH + 1) for i in range(150)}
    metrics = [("m", float(i), i) for i in range(A_BATCH + 1)] + [("bad", math.nan, 0), ("bad", math.inf, 1)]
    requests = []

    def send(request) -> None:
        requests.append(request)
        request()

    log_values(client, run_id, params=params, metrics=metrics, timestamp=7, send=send)
    data = client.get_run(run_id).data
    assert len(data.params) == 150 and data.params["p1"] == "1,b" and len(data.params["p0"]) == PARAM_LENGTH
    assert set(data.metrics) == {"m"} and len(requests) == 2
    history = client.get_metric_history(run_id, "m")
    assert len(history) == A_BATCH + 1 and {item.timestamp for item in history} == {7}


def test_names_in_every_script_are_taken_and_stay_apart(tmp_path):
    """Guards: a sweep that is refused for an emotion in Hindi, and two emotions in Japanese whose effects are one metric."""
    names = ["effect.喜び.x.joy", "effect.怒り.x.joy", "effect.कि.x.joy", "effect.की.x.joy", "effect.très.x.joy", "effect.a😀.x", "effect.a😡.x"]
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    run_id = client.create_run("0").info.run_id
    log_values(client, run_id, metrics=[(name, float(number), 0) for number, name in enumerate(names)])
    assert sorted(client.get_run(run_id).data.metrics.values()) == list(range(len(names)))
    assert metric_name("effect.joy.alpha_2.x: y/z-1") == "effect.joy.alpha_2.x: y/z-1" and metric_name(names[0]) == names[0]
    assert metric_name("effect.tre\u0300s.x") == "effect.très.x"
    assert metric_name(names[2]).startswith("effect.क_-") and metric_name(names[2]).endswith(".x.joy")
    client.set_tag(run_id, metric_name("emo.verdict.कि"), "specific")

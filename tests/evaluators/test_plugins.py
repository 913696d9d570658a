"""The scorers inside MLflow: evaluator plugin, genai scorers, pyfunc model."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from emo_mlflow.evaluators import genai, plugin
from emo_mlflow.evaluators.pyfunc import log_scorer
from mlflow import MlflowClient
from mlflow.pyfunc import scoring_server
from tiny_scorers import write_scorer

import emo_mlflow
from emo_mlflow.errors import UserError

TEXTS = ["one two three", "two", "one one", "", "three three three three"]
ENOUGH = [*TEXTS, "two three", "three one", "one one two"]  # for intervals, of which five texts have none


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty tracking store: making its tables takes seconds, copying it does not."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(autouse=True)
def store(tmp_path: Path, empty_store: Path) -> Iterator[None]:
    """A tracking store of the test's own."""
    before = mlflow.get_tracking_uri()
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = mlflow.create_experiment("test", artifact_location=(tmp_path / "artifacts").as_uri())
    mlflow.set_experiment(experiment_id=experiment)
    yield
    mlflow.set_tracking_uri(before)


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    return str(write_scorer(tmp_path / "tiny"))


def test_evaluate_through_the_entry_point(tiny: str) -> None:
    """Guards: a plugin that MLflow does not find, means of the wrong column, a table without its texts."""
    frame = pd.DataFrame({"text": ENOUGH, "topic": list("abcdefgh")})
    with mlflow.start_run() as run:
        result = mlflow.models.evaluate(
            data=frame,
            predictions="text",
            model_type="emotion-text",
            evaluators="emo_text",
            evaluator_config={"scorers": tiny},
        )
    expected = emo_mlflow.score(ENOUGH, tiny)
    logged = mlflow.get_run(run.info.run_id).data.metrics
    for metric in expected.columns:
        assert logged[f"{metric}/mean"] == pytest.approx(expected[metric].mean(), abs=1e-6)
        assert logged[f"{metric}/low"] < logged[f"{metric}/mean"] < logged[f"{metric}/high"]
    assert result.metrics == pytest.approx(logged)
    path = mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/emo_text_scores.parquet")
    table = pd.read_parquet(path)
    assert list(table["text"]) == ENOUGH
    pd.testing.assert_frame_equal(table[list(expected.columns)], expected)
    pd.testing.assert_frame_equal(result.artifacts["emo_text_scores"].content, table)
    rows = result.tables["eval_results_table"]
    assert list(rows["text"]) == ENOUGH and result.artifacts["eval_results_table"].content["columns"] == list(table.columns)
    np.testing.assert_allclose(rows[list(expected.columns)].to_numpy(float), expected, atol=1e-6)


def test_paired_differences_from_a_baseline(tiny: str) -> None:
    """Guards: a difference of means with unpaired intervals, signs turned round."""
    frame = pd.DataFrame({"text": [f"{text} two" for text in ENOUGH], "before": ENOUGH})
    with mlflow.start_run():
        result = mlflow.models.evaluate(
            data=frame,
            predictions="text",
            model_type="emotion-text",
            evaluators="emo_text",
            evaluator_config={"scorers": [tiny], "baseline": "before"},
        )
    # Each text is its baseline and one more "two": the sum grows by 2 x 0.5, the number of tokens by 1, for all alike.
    assert result.metrics["raw.x/diff"] == pytest.approx(1.0)
    assert result.metrics["raw.y/diff"] == pytest.approx(1.0)
    assert result.metrics["signs.a/diff_low"] < result.metrics["signs.a/diff"] < result.metrics["signs.a/diff_high"]
    assert {"baseline", "baseline.raw.x"} <= set(result.artifacts["emo_text_scores"].content.columns)


class _Message:
    """An object of a client's library."""

    def __init__(self, content: Any) -> None:
        self.content = content
        self.type = "ai"


CHAT = {"role": "assistant", "content": "fine"}


@pytest.mark.parametrize(
    "outputs",
    [
        "fine", {"content": "fine"}, {"response": "fine"}, {"output": "fine"}, ["fine"], {"predictions": ["fine"]},
        {"choices": [{"message": CHAT, "finish_reason": "stop"}], "usage": {"total_tokens": 3}}, {"choices": [{"text": "fine"}]},
        {"messages": [{"role": "user", "content": "how?"}, CHAT]}, [{"role": "user", "content": "how?"}, CHAT, {"role": "tool", "content": "7"}],
        {"role": "assistant", "content": [{"type": "text", "text": "fi"}, {"type": "text", "text": "ne"}]},
        {"content": [{"type": "thinking", "text": "hm"}, {"type": "text", "text": "fine"}]},
        {"output": [{"type": "reasoning", "content": [{"text": "hm"}]}, {"type": "message", "role": "assistant",
         "content": [{"type": "output_text", "text": "fine"}]}]},
        {"candidates": [{"content": {"parts": [{"text": "fine"}], "role": "model"}}]}, {"generated_text": "fine"}, [{"generated_text": "fine"}],
        _Message("fine"), {"messages": [_Message("how?"), _Message("fine")]}, {"message": {"content": "fine"}}, {"answer": "fine", "sources": []},
    ],
)  # fmt: skip
def test_the_text_of_an_answer_is_found(outputs: Any) -> None:
    """Guards: `{}` for an answer of a chat."""
    assert genai.text_in(outputs) == "fine"


@pytest.mark.parametrize("outputs", [{}, {"id": "x"}, 7, None, [], {"choices": []}, [{"role": "user", "content": "how?"}]])
def test_an_output_without_a_text_is_an_error(outputs: Any) -> None:
    with pytest.raises(UserError, match="expected a text, a message, or an answer"):
        genai.text_in(outputs)


def test_other_model_types_are_not_claimed() -> None:
    """Guards: every evaluation in a process with this package installed being scored for emotions."""
    evaluator = plugin.EmoTextEvaluator
    assert evaluator.can_evaluate(model_type="emotion-text", evaluator_config=None)
    assert not evaluator.can_evaluate(model_type="text", evaluator_config={})
    assert not evaluator.can_evaluate(model_type=None, evaluator_config={})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"scorer": "embedded"}, "no option scorer; its options are scorers"),
        ({"baseline": "no_such"}, "no column 'no_such'"),
        ({"scorers": "no_such"}, "unknown scorer 'no_such'"),
    ],
)
def test_wrong_options_are_refused(config: dict[str, str], message: str) -> None:
    """Guards: a misspelt option that is ignored."""
    frame = pd.DataFrame({"text": TEXTS, "n": range(5)})
    with mlflow.start_run(), pytest.raises(UserError, match=message):
        mlflow.models.evaluate(
            data=frame,
            predictions="text",
            model_type="emotion-text",
            evaluators="emo_text",
            evaluator_config=config,
        )


def test_missing_text_names_its_row(tiny: str) -> None:
    """Guards: a missing text scored as if it were one."""
    frame = pd.DataFrame({"text": ["one", None, "two"]})
    with mlflow.start_run(), pytest.raises(UserError, match="row 1"):
        mlflow.models.evaluate(
            data=frame,
            predictions="text",
            model_type="emotion-text",
            evaluators="emo_text",
            evaluator_config={"scorers": tiny},
        )


def test_threads_share_batches(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards: one text at a time, a text scored once per scorer class, a thread given another's row."""
    batcher = genai._Batcher(genai.load_scorers([tiny]))
    sizes: list[int] = []
    original = batcher.scorers.score

    def slow(texts: list[str]) -> np.ndarray:
        sizes.append(len(texts))
        time.sleep(0.02)
        return original(texts)

    monkeypatch.setattr(batcher.scorers, "score", slow)
    texts = [f"{'two ' * (i % 20)}one" for i in range(60)]
    with ThreadPoolExecutor(10) as pool:
        rows = list(pool.map(batcher.score, texts))
    np.testing.assert_array_equal(rows, original(texts))
    assert sum(sizes) == 20, "a text was scored twice"
    assert max(sizes) > 1, "threads did not share a batch"


def test_genai_evaluate() -> None:
    """Guards: scorers that MLflow cannot run, feedback without its label, one scorer's numbers under another's name."""
    texts = ["Thank you so much!", "I hate this, shame on you."]
    data = [{"inputs": {"question": str(i)}, "outputs": text} for i, text in enumerate(texts)]
    labels = ("anger", "gratitude")  # MLflow stores each label of each row by itself: all would take seconds
    scorers = [genai.Sentiment(), genai.Politeness(), genai.GoEmotions(labels=labels)]
    result = mlflow.genai.evaluate(data=data, scorers=scorers)
    expected = emo_mlflow.score(texts)
    wanted = [m for m in expected.columns if not m.startswith("goemotions.")] + [f"goemotions.{x}" for x in labels]
    assert {name.removesuffix("/mean") for name in result.metrics} == set(wanted)
    for metric in wanted:
        assert result.metrics[f"{metric}/mean"] == pytest.approx(expected[metric].mean(), abs=1e-4)
        column = result.result_df.set_index("trace_id")[f"{metric}/value"]
        assert sorted(column) == pytest.approx(sorted(expected[metric]), abs=1e-4)


def test_genai_scorer_alone(tiny: str) -> None:
    """Guards: outputs that are not bare strings, and a scorer without the head that is asked for."""
    feedback = genai.Sentiment()(outputs={"content": "I love it"})
    assert [f.name for f in feedback] == ["sentiment.negative", "sentiment.neutral", "sentiment.positive"]
    assert feedback[2].value > 0.8
    (only,) = genai.Sentiment(labels=("positive",))(outputs="I love it")
    assert (only.name, only.value) == ("sentiment.positive", feedback[2].value)
    with pytest.raises(UserError, match="has no sentiment"):
        genai.Sentiment(scorers=tiny)
    with pytest.raises(UserError, match=r"has no sentiment\.glad; it has sentiment\.negative"):
        genai.Sentiment(labels=("positive", "glad"))
    with pytest.raises(UserError, match="expected a text"):
        genai.Sentiment()(outputs=17)


def test_pyfunc_model(tiny: str) -> None:
    """Guards: a model that needs files outside of itself, a wrong signature, rows in another order."""
    with mlflow.start_run():
        info = log_scorer(tiny)
    for file in Path(tiny).iterdir():
        file.unlink()
    model = mlflow.pyfunc.load_model(info.model_uri)
    frame = pd.DataFrame({"text": TEXTS}, index=[3, 1, 4, 0, 2])
    scores = model.predict(frame)
    assert list(scores.index) == [3, 1, 4, 0, 2]
    np.testing.assert_allclose(scores["raw.x"], [3.0, 1.0, 1.0, 0.0, 6.0])
    assert [column.name for column in info.signature.inputs] == ["text"]
    assert len(info.signature.outputs.inputs) == 6
    with pytest.raises(mlflow.exceptions.MlflowException):
        model.predict(pd.DataFrame({"other": ["one"]}))
    _check_answers(model)


def _check_answers(model: mlflow.pyfunc.PyFuncModel) -> None:
    """What `mlflow models serve` answers to a request's body: scores, or a message that names the row."""

    def answer(body: dict[str, Any]) -> Any:
        schema = model.metadata.get_input_schema()
        return json.loads(scoring_server.invocations(json.dumps(body), "application/json", model, schema).response)

    rows = [{"text": text} for text in TEXTS]
    for body in ({"dataframe_records": rows}, {"inputs": rows}, {"inputs": {"text": TEXTS}}):
        answered = pd.DataFrame(answer(body)["predictions"])
        np.testing.assert_allclose(answered["raw.x"], [3.0, 1.0, 1.0, 0.0, 6.0])
    with pytest.raises(mlflow.exceptions.MlflowException, match="row 1: expected a text"):
        answer({"dataframe_records": [*rows[:1], {"text": None}]})

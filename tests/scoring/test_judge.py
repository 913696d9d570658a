"""A judge behind a real HTTP server: what it is asked, what its answers become, and everything that such servers do wrong."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
from judges import RUBRIC, JudgeServer, write_rubric

from emo_mlflow.errors import Unscored, UserError
from emo_mlflow.scoring import judge
from emo_mlflow.scoring.loading import load_scorer, load_scorers
from emo_mlflow.scoring.rubric import parse_address, read_rubric

TEXTS = [f"text {'x' * i}" for i in range(40)]


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """A cache of its own, and pauses that a test can wait for."""
    monkeypatch.setenv("EMO_MLFLOW_CACHE", str(tmp_path / "cache"))
    for name, value in {"PATIENCE": 0.6, "FIRST_PATIENCE": 0.2, "FIRST_PAUSE": 0.05}.items():
        monkeypatch.setattr(judge, name, value)


@pytest.fixture
def server():
    server = JudgeServer()
    yield server
    server.close()


def test_answers_become_columns_and_each_text_is_asked_about_once(server, tmp_path):
    """Guards: a text taken for instructions, a text asked about again in another process, an order that threads decide."""
    name = server.scorer(write_rubric(tmp_path))
    scorers = load_scorers([name])
    assert scorers.metrics == ("judge.gratitude", "judge.warmth")
    found = scorers.score([*TEXTS, *TEXTS[:3]])
    assert found.dtype == np.float32 and found[:, 0].tolist() == [len(text) % 3 for text in [*TEXTS, *TEXTS[:3]]] and set(found[:, 1]) == {-0.5}
    assert sorted(server.asked) == sorted(["", "I thank you.", *TEXTS])
    request = server.requests[-1]
    assert request["model"] == "tiny" and request["temperature"] == 0 and [m["role"] for m in request["messages"]] == ["system", "user"]
    assert "How thankful" in request["messages"][0]["content"] and request["messages"][1]["content"].startswith('"text')
    assert request["response_format"]["json_schema"]["schema"]["required"] == ["gratitude", "warmth"]
    assert scorers.costs["judge.judge.calls"] == 42 and scorers.costs["judge.judge.unreadable"] == 0 and scorers.costs["judge.judge.seconds"] > 0
    again = load_scorers([name])
    np.testing.assert_array_equal(again.score(TEXTS), found[:40])
    assert again.costs["judge.judge.calls"] == 0 and again.costs["judge.judge.from_cache"] == 42
    other = load_scorer(server.scorer(write_rubric(tmp_path, RUBRIC.replace("thankful", "grateful"))))
    assert other.fingerprint != again.fingerprints["judge"] and len(server.requests) == 44


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('{"gratitude": 2, "warmth": 1}', [2, 1]),
        ('```json\n{"gratitude": 0.5,\n "warmth": -1}\n``` because', [0.5, -1]),
        ("I cannot {judge} that. {\"gratitude\": 1}", [1, np.nan]),
        ('{"gratitude": 3, "warmth": "0"}', [np.nan, np.nan]),
        ('{"gratitude": true, "warmth": NaN}', [np.nan, np.nan]),
        ("two", [np.nan, np.nan]),
        ("", [np.nan, np.nan]),
    ],
)
def test_an_answer_is_read_or_is_nan(answer, expected, tmp_path):
    np.testing.assert_array_equal(read_rubric(write_rubric(tmp_path)).read(answer), expected)


def test_unreadable_answers_are_counted_and_do_not_stop(server, tmp_path):
    """Guards: one odd answer that ends a sweep; and a model that never answers as asked found out after hours."""
    name = server.scorer(write_rubric(tmp_path))
    server.answer = lambda text: "no" if "xxx" in text else '{"gratitude": 1, "warmth": 0}'
    scorers = load_scorers([name])
    found = scorers.score(TEXTS)
    assert np.isnan(found).all(axis=1).sum() == 37 and scorers.costs["judge.judge.unreadable"] == 37
    server.answer = lambda text: "no"
    with pytest.raises(UserError, match="no answer about two texts that could be read"):
        load_scorers([server.scorer(write_rubric(tmp_path, RUBRIC.replace("judge", "other")))])


def test_trouble_that_passes_is_waited_for(server, tmp_path):
    """429 and 503 now and then, one that is too slow, and a server that knows no schemas."""
    server.fault = lambda i: {1: 429, 3: 503, 6: 0.8, 9: 500}.get(i)
    assert load_scorers([server.scorer(write_rubric(tmp_path))]).score(TEXTS)[:, 0].tolist() == [len(text) % 3 for text in TEXTS]
    plain = JudgeServer(fault=lambda i: 400 if i == 0 else None)
    load_scorers([plain.scorer(write_rubric(tmp_path, RUBRIC.replace("judge", "plain")))]).score(TEXTS[:3])
    assert "response_format" in plain.requests[0] and "response_format" not in plain.requests[-1]
    plain.close()


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (429, Unscored, r"answers 429 \(too many requests\) again and again; start it, or wait"),
        (503, Unscored, "answers 503 again and again"),
        (0.8, Unscored, "did not answer within 0.5 seconds"),
        ("html", UserError, "answers 200 with HTML, not JSON: give an OpenAI-compatible API"),
        ("bad", UserError, "which is no chat completion"),
        (401, UserError, "answers 401.*busy"),
        (302, UserError, "redirects to.*elsewhere.example"),
    ],
)
def test_trouble_that_stays_is_a_line_and_answers_are_kept(server, tmp_path, monkeypatch, fault, error, message):
    """Guards: minutes of retries of what cannot pass, a traceback, answers lost, and texts that a redirection takes elsewhere."""
    name = server.scorer(write_rubric(tmp_path))
    scorers = load_scorers([name])
    scorers.score(TEXTS[:5])
    server.fault = lambda i: fault
    if isinstance(fault, float):  # not of the others: a machine with other work may take as long for an answer
        monkeypatch.setattr(judge, "ANSWER_SECONDS", 0.5)
    began = time.monotonic()
    with pytest.raises(error, match=message):
        scorers.score(TEXTS)
    assert time.monotonic() - began < 8
    server.fault = lambda i: None
    before = len(server.requests)
    again = load_scorers([name]).score(TEXTS)
    assert not np.isnan(again).any() and len(server.requests) - before <= 35


def test_a_judge_that_is_away_is_a_line_before_anything_is_generated(server, tmp_path):
    name = server.scorer(write_rubric(tmp_path))
    server.close()
    with pytest.raises(Unscored, match=r"the judge http://127.0.0.1:\d+/v1 does not answer .*start it"):
        load_scorers([name])


def test_no_more_calls_than_allowed(server, tmp_path):
    """The two trial texts count; answers until then are kept, and the next process goes on from there."""
    name = server.scorer(write_rubric(tmp_path))
    with pytest.raises(Unscored, match="judge_max_calls=12 calls were made, and there are texts left"):
        load_scorers([name], max_calls=12).score(TEXTS)
    assert len(server.requests) == 12
    assert not np.isnan(load_scorers([name], max_calls=30).score(TEXTS)).any() and len(server.requests) == 42


def test_the_key_goes_to_the_judge_alone_and_no_proxy_is_asked(server, tmp_path, monkeypatch):
    """Guards: texts sent to a proxy of the environment; a key in an address, which is logged."""
    monkeypatch.setenv("EMO_MLFLOW_JUDGE_KEY", "secret")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    load_scorers([server.scorer(write_rubric(tmp_path))])
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer secret"}


def test_addresses_and_rubrics_that_are_none_are_lines(tmp_path):
    rubric = write_rubric(tmp_path)
    for name in (
        "judge:", "judge:ftp://a/v1?model=m&rubric=r", "judge:http://a/v1", "judge:http://a/v1?model=m", f"judge:http:///v1?model=m&rubric={rubric}",
        f"judge:http://a/v1?model=m&rubric={rubric}&x=1",
    ):  # fmt: skip
        with pytest.raises(UserError, match="is not of the form judge:http"):
            parse_address(name)
    with pytest.raises(UserError, match="EMO_MLFLOW_JUDGE_KEY"):
        parse_address(f"judge:http://me:secret@a/v1?model=m&rubric={rubric}")
    with pytest.raises(UserError, match="cannot read the rubric"):
        parse_address("judge:http://a/v1?model=m&rubric=absent.yaml")
    for text in ("", "[]", "name: x", RUBRIC + "more: 1", RUBRIC.replace("[0, 2]", "[2, 0]"), RUBRIC.replace("[0, 2]", "[.nan, 1]"),
                 RUBRIC.replace("name: judge", "name: ../x"), RUBRIC.replace("How thankful is the text?", "''"), "!!python/object:x {}"):  # fmt: skip
        with pytest.raises(UserError, match="rubric"):
            read_rubric(write_rubric(tmp_path, text))


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("EMO_MLFLOW_JUDGE_URL"), reason="EMO_MLFLOW_JUDGE_URL names no server, such as llama.cpp's, to ask")
def test_a_real_server_answers(tmp_path, monkeypatch):
    """Guards: a protocol that only the server of these tests speaks. How good the answers are is the model's affair."""
    monkeypatch.setattr(judge, "ANSWER_SECONDS", 60.0)
    scorers = load_scorers([f"judge:{os.environ['EMO_MLFLOW_JUDGE_URL']}?model=any&rubric={write_rubric(tmp_path)}"])
    found = scorers.score(["I am so grateful, thank you!", "The bus leaves at nine.", "x" * 500])
    assert found.shape == (3, 2) and scorers.costs["judge.judge.calls"] == 5
    read = found[~np.isnan(found[:, 0]), 0]
    assert ((read >= 0) & (read <= 2)).all() and scorers.costs["judge.judge.unreadable"] <= 3

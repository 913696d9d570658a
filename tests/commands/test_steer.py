"""One condition tried on a prompt: the texts are the definition's and the sweep's, word by word too, and mistakes are a line."""

from __future__ import annotations

import re
import threading
from itertools import pairwise
from pathlib import Path

import pytest
from chat_models import save_chat
from click.testing import CliRunner
from packs import assert_same_or_tied
from places import write_worded_texts
from tiny_models import save_tiny
from tiny_scorers import write_scorer

import emo_mlflow
from emo_mlflow import UserError, load_sweep
from emo_mlflow.cli.main import main
from emo_mlflow.serving.call_options import Options
from emo_mlflow.serving.side_by_side import SideBySide
from emo_mlflow.steering.decoding import PackDecoder

WORDS = {"gratitude": "you and the", "anger": "ring thin hour", "neutral": "stone brick road"}
SHORT = {"dataset": "data.jsonl", "device": "cpu", "max_new_tokens": 8}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Models, a scorer, a data set, and a finished sweep with a window in a store of its own."""
    folder = tmp_path_factory.mktemp("steer")
    save_tiny(folder / "model", "gpt2")
    save_chat(folder / "chatty", "qwen3")
    write_scorer(folder / "scorer")
    write_worded_texts(folder, WORDS, n_fit=6, n_test=4)
    words = ["sweep", "--model", "model", "--dataset", "data.jsonl", "--scorers", "scorer", "--device", "cpu", "--layers", "1,2"]
    words += ["--alphas", "1,8", "--scope", "window", "--patch-window", "2", "--sequence-length", "9", "--num-random", "0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("EMO_MLFLOW_CACHE", str(folder / "cache"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    (folder / "sweep").write_text(re.search(r"Run\s+([0-9a-f]{32})", result.output)[1])
    return folder


@pytest.fixture(autouse=True)
def here(place, monkeypatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("EMO_MLFLOW_CACHE", str(place / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}/mlflow.db")


def invoke(*words: str):
    return CliRunner().invoke(main, ["steer", *words], catch_exceptions=True)


@pytest.mark.parametrize(
    "more",
    [
        {"scope": "generated"}, {"scope": "window", "patch_window": 2}, {"scope": "all", "operation": "clamp"},
        {"model": "chatty", "template": "auto", "system": "you"}, {"direction": "subspace:2", "site": "resid_post"},
        {"alpha_unit": "residual", "alpha": 0.5}, {"alpha_unit": "kl", "alpha": 0.1},
    ],
)  # fmt: skip
def test_both_texts_are_the_definitions(more):
    """Fitted on the spot, under every kind of setting: token by token what the model writes without a cache, with and without the hook."""
    steering = emo_mlflow.steer("gratitude", **{"layer": 1, "alpha": 4.0, "model": "model", **SHORT, **more})
    (clean,), (steered,), engine = steering._rows(["the brick road"], Options())
    tokens = {item.row.cell: item.tokens for item in PackDecoder(engine.stack, [clean, steered], engine.decoding).run()}
    assert clean.patch is None and steered.patch.scope == more.get("scope", "generated")
    for row in (clean, steered):
        assert_same_or_tied(engine.stack, row, tokens[row.cell], engine.decoding)
    texts = steering("the brick road")
    assert [texts.unsteered, texts.steered] == engine.decode([list(tokens[row.cell]) for row in (clean, steered)])


def test_it_writes_what_the_sweep_wrote(place):
    """From the sweep's run id, from its directions, and fitted anew: three ways to one text."""
    run_id = (place / "sweep").read_text()
    sweep = load_sweep(run_id)
    table = sweep.conditions
    row = table[(table["kind"] == "emotion") & (table["emotion"] == "anger") & (table["layer"] == 2) & (table["alpha"] == 1.0)].iloc[0]
    baseline = table.loc[table["kind"] == "baseline", "condition_id"].iloc[0]
    texts = sweep.completions.pivot(index="prompt_id", columns="condition_id", values="completion")
    prompts = sweep.prompts.set_index("prompt_id")["text"]
    expected = texts.loc[prompts.index, [baseline, row["condition_id"]]].to_numpy().tolist()
    assert any(left != right for left, right in expected)
    where = {"emotion": "ANGER", "layer": 2, "alpha": 1, "device": "cpu"}
    alike = {"scope": "window", "patch_window": 2, "max_new_tokens": 9, "min_new_tokens": 9, "model": "model", "dataset": "data.jsonl"}
    for given in ({**where, "emotion": "anger", "run_id": run_id}, {**where, **alike}, {**where, **alike, "directions": run_id}):
        found = emo_mlflow.steer(**given).table(list(prompts))
        assert found[["unsteered", "steered"]].to_numpy().tolist() == expected, given
        assert list(found["prompt"]) == list(prompts)


def test_word_by_word_it_is_the_same_text():
    steering = emo_mlflow.steer("gratitude", layer=1, alpha=2, model="model", **SHORT)
    whole = steering("the brick road", temperature=2.0, seed=5)
    assert whole != steering("the brick road", temperature=2.0, seed=6)
    parts = list(steering.stream("the brick road", temperature=2.0, seed=5))
    assert parts[-1] == whole and len(parts) >= 2
    for before, after in pairwise(parts):
        assert after.steered.startswith(before.steered) and after.unsteered.startswith(before.unsteered)
    begun = steering.stream("the brick road")
    next(begun)
    begun.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "streaming"]
    assert steering("the brick road").prompt == "the brick road", "the model is free again"


def test_an_alpha_that_breaks_the_text_is_a_line():
    steering = emo_mlflow.steer("gratitude", layer=1, model="model", **SHORT)
    assert steering("the").steered is not None
    with pytest.raises(UserError, match="not finite: alpha is too large"):
        steering("the", alpha=1e38)
    with pytest.raises(UserError, match="not finite: alpha is too large"):
        list(steering.stream("the", alpha=1e38))
    with pytest.raises(UserError, match="unknown parameter 'layer'"):
        steering("the", layer=3)


def test_side_by_side_shows_texts_as_texts(monkeypatch):
    """Guards: a text that is a tag in a notebook, or moves the cursor of a terminal; lines that are wider than the terminal."""
    beside = SideBySide("a <b>prompt</b>", "one\x1b[2J " * 30, "<script>two\nlines</script>", "joy, layer 1, alpha 2")
    shown = beside._repr_html_()
    assert "<script>" not in shown and "<b>" not in shown and "two<br>lines" in shown and "\x1b" not in shown
    for columns in (40, 100, 300):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert max(map(len, str(beside).splitlines())) <= columns and "\x1b" not in str(beside)
    assert "with joy, layer 1, alpha 2" in str(beside)


COMMON = ("--model", "model", "--dataset", "data.jsonl", "--device", "cpu", "--max-new-tokens", "5")


def test_in_a_terminal():
    result = invoke("the brick", "the road", "--emotion", "gratitude", "--layer", "1", "--alpha", "2", *COMMON)
    assert result.exit_code == 0, (result.output, result.exception)
    assert result.output.count("with gratitude, layer 1, alpha 2") == 2 and "the road" in result.output
    middle = invoke("the", "--emotion", "anger", "--stream", *COMMON)
    assert middle.exit_code == 0 and "with anger, layer 2, alpha 1" in middle.output, (middle.output, middle.exception)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "there is no prompt"),
        (("  ",), "there is no prompt"),
        (("the", "--emotion", "joy"), "there is no emotion 'joy': choose --emotion gratitude, anger"),
        (("the",), "which emotion: choose --emotion gratitude, anger"),
        (("the", "--emotion", "anger", "--layer", "4"), "layer 4 does not exist: the model has layers 0 to 3"),
        (("the", "--emotion", "anger", "--alpha", "much"), "alpha='much' is not a number"),
        (("the", "--emotion", "anger", "--scope", "some"), "scope='some' is not one of"),
        (("the", "--emotion", "anger", "--template", "chat"), "no chat template"),
        (("the", "--emotion", "anger", "--system", "you"), "needs a chat template"),
        (("the", "--emotion", "anger", "--alpha-unit", "kl", "--operation", "project_out"), "has no strength"),
        (("the", "--emotion", "anger", "--directions", "nothing"), "neither a file nor a run"),
        (("the " * 200, "--emotion", "anger"), "does not fit the model's context"),
        (("the", "--run-id", "0" * 32), "model='model' beside run_id: the sweep says it"),
    ],
)
def test_mistakes_are_a_line(words, message):
    result = invoke(*words, *COMMON)
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit), result.exception
    assert message in result.output and result.output.rstrip().count("\n") <= 3, result.output


def test_a_run_that_is_none_is_a_line():
    result = invoke("the", "--run-id", "0" * 32)
    assert result.exit_code == 2 and "there is no run" in result.output

"""Asking for an emotion beside steering towards it: texts and likelihoods are the plain model's, ids are stable, mistakes are said at once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from chat_models import save_chat
from click.testing import CliRunner
from places import write_worded_texts
from tiny_models import save_tiny
from tiny_scorers import write_scorer

from emo_mlflow import compare, load_sweep
from emo_mlflow.cli.main import main
from emo_mlflow.errors import UserError
from emo_mlflow.prompts.asking import INSTRUCTIONS
from emo_mlflow.scoring.cards import Head
from emo_mlflow.settings.sweep import make_config, make_head_config, work_hash
from emo_mlflow.sweeping.plan import Plan, make_plan, prepare
from emo_mlflow.sweeping.results import condition_of
from emo_mlflow.sweeping.resume import work_id
from emo_mlflow.sweeping.run import run
from emo_mlflow.sweeping.tables import condition_rows
from emo_mlflow.types import Cell

WORDS = {"gratitude": "you and the", "anger": "ring thin hour", "neutral": "stone brick road"}
SYSTEM = "You are the one."


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("asking")
    save_tiny(folder / "model", "llama")
    save_chat(folder / "chatty", "qwen3")
    save_chat(folder / "strict", "gemma3")
    write_scorer(folder / "scorer", (Head("goemotions", ("gratitude", "anger"), "sigmoid", "logits", temperature=2.0),))
    write_worded_texts(folder, WORDS, n_fit=6, n_test=6)
    (folder / "own.json").write_text('{"Gratitude": " the hour and "}')
    return folder


def plan_of(place: Path, **given: str) -> Plan:
    settings = {"model": str(place / given.pop("model", "model")), "dataset": str(place / "data.jsonl"), "scorers": str(place / "scorer")}
    settings |= {"layers": "1", "alphas": "4", "sequence_length": "6", "max_samples": "3", "num_random": "1", "device": "cpu"}
    return make_plan(prepare(make_config("smoke", {"arms": "direction,instruction,examples", **settings, **given})))


def written(plan: Plan, ids: list[int], n: int) -> list[int]:
    """What the plain model goes on with, without a cache."""
    with torch.inference_mode():
        for _ in range(n):
            logits = plan.loaded.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            logits[list(plan.engine.decoding.absent_ids)] = -torch.inf
            logits[list(plan.engine.decoding.eos_ids)] = -torch.inf
            ids = [*ids, int(logits.argmax())]
    return ids[-n:]


def expected_prompt(plan: Plan, text: str, front: str, template: str) -> list[int]:
    tokenizer = plan.loaded.tokenizer
    if template == "none":
        return [tokenizer.bos_token_id, *tokenizer(f"{front}\n\n{text}", add_special_tokens=False)["input_ids"]]
    system = [{"role": "system", "content": f"{SYSTEM}\n\n{front}"}]
    turns = [*system, {"role": "user", "content": text}]
    if template == "strict":
        turns = [{"role": "user", "content": f"{front}\n\n{text}"}]
    return list(tokenizer.apply_chat_template(turns, add_generation_prompt=True, enable_thinking=False, return_dict=False))


@pytest.mark.parametrize("template", ["none", "chat", "strict"])
@pytest.mark.parametrize("scope", ["window", "prompt"])
def test_texts_and_likelihoods_are_the_plain_models(place, template, scope):
    """Guards: an edit that leaks into a row that is asked, and a likelihood behind the instruction, which makes obeying look fluent."""
    chat = {"template": "chat", "shots": "1"}
    more = {"none": {}, "chat": {**chat, "model": "chatty", "system": SYSTEM}, "strict": {**chat, "model": "strict"}}
    plan = plan_of(place, scope=scope, **more[template])
    done = {c.cell: c for pack in plan.engine.generate([plan.row(cell) for cell in plan.cells()]) for c in pack}
    asking = [condition for condition in plan.conditions if not condition.steers and condition.kind != "baseline"]
    assert [(condition.kind, condition.emotion) for condition in asking] == [
        ("instruction", "gratitude"), ("instruction", "anger"), ("examples", "gratitude"), ("examples", "anger")
    ]  # fmt: skip
    for condition in asking:
        for prompt in plan.inputs.prompts.test:
            ids = written(plan, expected_prompt(plan, prompt.text, condition.front, template), 6)
            found = done[Cell(condition.condition_id, prompt.prompt_id, 0)]
            assert found.completion == plan.engine.decode([ids])[0] and found.n_patched == 0
            own = list(plan.tokens[prompt.prompt_id])
            with torch.inference_mode():
                logits = plan.loaded.model(input_ids=torch.tensor([[*own, *ids]]), use_cache=False).logits[0, len(own) - 1 : -1]
            nll = torch.nn.functional.cross_entropy(logits.double(), torch.tensor(ids), reduction="none").numpy()
            np.testing.assert_allclose([found.nll, found.nll_sd], [nll.mean(), nll.std()], rtol=2e-4)


def test_other_conditions_are_what_they_are_without_it(place):
    """Ids, texts and the hash of the work of sweeps that were made before there were arms."""
    alone, beside = plan_of(place, arms="direction"), plan_of(place)
    assert alone.conditions == beside.conditions[: len(alone.conditions)]
    assert work_hash(alone.config) == work_hash(replace(alone.config, arms=("direction",), shots=4)) != work_hash(beside.config)
    first, second = (run(plan, [], lambda pack: None, lambda *args: None).completions for plan in (alone, beside))
    kept = second[second["condition_id"].isin(set(first["condition_id"]))]
    assert list(kept["completion"]) == list(first["completion"])


def test_conditions_come_back_from_their_table(place):
    plan = plan_of(place, instructions=str(place / "own.json"))
    rows = condition_rows(plan.conditions).to_dict("records")
    assert tuple(condition_of(row) for row in rows) == plan.conditions
    fronts = {(c.kind, c.emotion): c.front for c in plan.conditions if c.front}
    assert fronts["instruction", "gratitude"] == "the hour and" and fronts["instruction", "anger"] == INSTRUCTIONS["none"]["anger"]
    fit = {prompt.text for prompt in plan.inputs.prompts.fit if prompt.emotion == "anger"}
    shots = fronts["examples", "anger"].split("\n\n")
    assert len(set(shots)) == 4 and set(shots) <= fit
    assert fronts == {(c.kind, c.emotion): c.front for c in plan_of(place, instructions=str(place / "own.json")).conditions if c.front}


def test_another_instruction_is_other_work(place):
    """Guards: a resumed sweep that goes on under words that were changed in the file meanwhile."""
    file = place / "changed.json"
    works = []
    for text in ("the hour", "the thin hour"):
        file.write_text(json.dumps({"anger": text}))
        works.append(work_id(plan_of(place, instructions=str(file))))
    assert len(set(works)) == 2


def test_a_sweep_and_its_comparison(place, tmp_path, monkeypatch):
    """The run has a child for each way of asking; the comparison tests each direction against it, and its words follow the test."""
    monkeypatch.setenv("EMO_MLFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/store.db")
    monkeypatch.chdir(place)
    words = ["sweep", "--model", "model", "--dataset", "data.jsonl", "--scorers", "scorer", "--device", "cpu", "--layers", "1,2", "--alphas", "1,4"]
    words += ["--sequence-length", "6", "--max-samples", "6", "--arms", "direction,instruction,examples", "--num-random", "1"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert "gratitude, asked for by an instruction: goemotions.gratitude from" in result.output
    assert "anger, asked for by 4 texts of it in front: goemotions.anger from" in result.output
    sweep = load_sweep(next(line.split()[1] for line in result.output.splitlines() if line.startswith("Run ")))
    comparison = compare([sweep.run_id], n_bootstrap=50)
    table = comparison.tables["against_asking"]
    assert len(table) == 2 * 2 * 4 * 2 and set(table["arm"]) == {"instruction", "examples"}
    row = table[(table["metric"] == "goemotions.anger") & (table["arm"] == "examples")].iloc[2]
    ids = {"steered": row["condition_id"]}
    ids["asked"] = sweep.conditions.query("kind == 'examples' and emotion == 'anger'")["condition_id"].iloc[0]
    scores = {name: sweep.scores[sweep.scores["condition_id"] == one].set_index("prompt_id")["goemotions.anger"] for name, one in ids.items()}
    assert row["difference"] == pytest.approx((scores["steered"] - scores["asked"]).mean(), abs=1e-6) and row["n"] == 6
    assert row["difference"] == pytest.approx(row["effect_direction"] - row["effect_asking"], abs=1e-6)
    report = CliRunner().invoke(main, ["compare", "--runs", sweep.run_id, "--n-bootstrap", "100"])
    assert report.exit_code == 0, report.output
    assert report.output.count("which of the two does more is not shown") + report.output.count("does more (difference") == 4
    assert CliRunner().invoke(main, ["compare", "--runs", sweep.run_id, "--n-bootstrap", "100", "--language", "ja"]).exit_code == 0
    logged = ["log-model", "--run-id", sweep.run_id, "--emotion", "anger", "--layer", "1", "--alpha", "1"]
    for command in (logged, ["export-legacy", "--run-id", sweep.run_id, "--out", str(tmp_path / "legacy")]):
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 0, done.output


HALF = '{"anger": "\\ud800"}'
TWICE = '{"anger": "be angry", "anger": "be furious"}'  # of which json keeps the last


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"arms": "instruction"}, "arms='instruction' has nothing to compare instruction with: give direction,instruction"),
        ({"arms": "direction,prompting"}, "arms='direction,prompting' is not one of direction, instruction, examples"),
        ({"arms": "direction", "instructions": "own.json"}, "needs arms=direction,instruction"),
        ({"arms": "direction,instruction", "shots": "2"}, "shots=2 needs arms=direction,examples"),
        ({"instructions": "nowhere.json"}, "instructions='nowhere.json' does not exist"),
        ({"instructions": "list.json"}, "must be a text for each emotion"),
        ({"instructions": "empty.json"}, "must be a text for each emotion"),
        ({"instructions": "other.json"}, "has one for 'joy', which is not swept: there are gratitude, anger"),
        ({"instructions": "broken.json"}, "is no JSON"),
        ({"instructions": "half.json"}, "the one for 'anger' holds half a character"),
        ({"instructions": "twice.json"}, "names an emotion twice"),
        ({"shots": "7"}, "shots=7 is more than the 6 texts of 'gratitude'"),
    ],
)
def test_mistakes_are_said_before_the_model_is_loaded(given, said, place, monkeypatch):
    monkeypatch.chdir(place)
    files = {"list": "[1]", "empty": '{"anger": " "}', "other": '{"joy": "be glad"}', "broken": "{", "half": HALF, "twice": TWICE}
    for name, text in files.items():
        (place / f"{name}.json").write_text(text)
    settings = {"model": "model", "dataset": "data.jsonl", "scorers": "scorer", "device": "cpu", "arms": "direction,instruction,examples"}
    with pytest.raises(UserError) as error:
        prepare(make_config("smoke", {**settings, **given}))
    assert said in str(error.value)


def test_heads_are_not_asked():
    with pytest.raises(UserError, match="unknown parameter 'arms'"):
        make_head_config("smoke", {"arms": "direction,instruction"})

"""Chats through every command: a sweep's texts are the definition's on the template's tokens, and steered models and studies follow."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from chat_models import save_chat
from click.testing import CliRunner
from mlflow import MlflowClient
from packs import assert_same_or_tied, run_packed
from places import write_worded_texts
from study_world import design_of
from tiny_scorers import write_scorer

from emo_mlflow import load_sweep
from emo_mlflow.cli.main import main
from emo_mlflow.models import loading
from emo_mlflow.models.chat import REQUEST
from emo_mlflow.scoring.cards import Head
from emo_mlflow.serving.steered_model import SETTINGS, GenerationDefaults, Settings, load_steered, save_steered
from emo_mlflow.settings.sweep import make_config, work_hash
from emo_mlflow.sweeping.plan import Plan, make_plan, prepare
from emo_mlflow.sweeping.run import run
from emo_mlflow.types import digest

WORDS = {"gratitude": "you and the", "anger": "ring thin hour", "neutral": "stone brick road"}
SYSTEM = "You are the one."
STRICT = ("--template", "chat", "--model", "strict")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("chats")
    save_chat(folder / "model", "qwen3")
    save_chat(folder / "strict", "gemma3")
    write_scorer(folder / "scorer", (Head("goemotions", ("gratitude", "anger"), "sigmoid", "logits", temperature=2.0),))
    write_worded_texts(folder, WORDS, n_fit=12, n_test=6)
    items = [{"question": f"stone {i}", "choices": ["you", "ring", "and"], "answer": i % 3} for i in range(6)]
    (folder / "items.jsonl").write_text("\n".join(json.dumps(item) for item in items))
    return folder


def plan_of(place: Path, **given: str) -> Plan:
    settings = {"model": str(place / "model"), "dataset": str(place / "data.jsonl"), "scorers": str(place / "scorer")}
    settings |= {"layers": "1,2", "alphas": "1,8", "sequence_length": "8", "max_samples": "3", "num_random": "1", "device": "cpu"}
    return make_plan(prepare(make_config("smoke", {**settings, **given})))


@pytest.mark.parametrize("scope", ["window", "generated", "all"])
@pytest.mark.parametrize("fit_on", ["response", "text", "last"])
def test_a_chat_is_steered_exactly(place, scope, fit_on):
    """Prompts are the tokenizer's own chats, and every text is what the model writes without a cache under the hook."""
    plan = plan_of(place, template="chat", system=SYSTEM, scope=scope, fit_on=fit_on, min_new_tokens="0")
    tokenizer = plan.loaded.tokenizer
    for prompt in plan.inputs.prompts.test:
        conversation = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt.text}]
        expected = tokenizer.apply_chat_template(conversation, add_generation_prompt=True, enable_thinking=False, return_dict=False)
        assert list(plan.tokens[prompt.prompt_id]) == expected
    decoding = plan.engine.decoding
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in decoding.eos_ids
    rows = [plan.row(cell) for cell in plan.cells() if cell.prompt_id == plan.inputs.prompts.test[0].prompt_id]
    found = run_packed(plan.stack, rows, decoding)
    for row in rows:
        assert_same_or_tied(plan.stack, row, found[row.cell.condition_id], decoding)


def write_conversations(place: Path) -> Path:
    """Fitted: answers to a question behind a system turn. Continued: the third turn, alone or behind a system turn of its own."""
    own = {"role": "system", "content": "the ring"}
    table = [
        {"emotion": emotion, "messages": [own, {"role": "user", "content": f"stone {i}"}, {"role": "assistant", "content": f"{words} {i}"}]}
        for emotion, words in WORDS.items()
        for i in range(4)
    ]
    for i in range(3):
        said = [("user", f"road {i}"), ("assistant", "brick"), ("user", f"you {i}")]
        messages = [{"role": role, "content": content} for role, content in said]
        table.append({"emotion": "neutral", "messages": [own, *messages] if i else messages})
    path = place / "conversations.jsonl"
    path.write_text("\n".join(map(json.dumps, table)))
    return path


@pytest.mark.parametrize("system", ["", SYSTEM])
def test_conversations_are_continued_and_fitted_on_as_the_template_has_them(place, system):
    """Prompts are the template's own tokens; directions are means over the last turn's tokens, from a plain forward pass; texts are exact."""
    path = write_conversations(place)
    plan = plan_of(place, template="chat", dataset=str(path), system=system, alphas="8", layers="2")
    loaded, data = plan.loaded, [json.loads(line) for line in path.read_text().splitlines()]

    def rendered(messages: list[dict[str, str]]) -> list[int]:
        own = messages[0]["content"] if messages[0]["role"] == "system" else ""
        first = [{"role": "system", "content": "\n\n".join(filter(None, (own, system)))}] if own or system else []
        messages = [*first, *[turn for turn in messages if turn["role"] != "system"]]
        return loaded.tokenizer.apply_chat_template(messages, add_generation_prompt=True, enable_thinking=False, return_dict=False)

    expected = [rendered(row["messages"]) for row in data[12:]]
    assert sorted(map(list, plan.tokens.values())) == sorted(expected) and len(plan.tokens) == 3
    means: dict[str, list[np.ndarray]] = {}
    for row in data[:12]:
        *before, last = row["messages"]
        asked, answer = rendered(before), loaded.tokenizer(last["content"], add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            states = loaded.model(torch.tensor([asked + answer]), output_hidden_states=True, use_cache=False).hidden_states
        means.setdefault(row["emotion"], []).append(states[2][0, len(asked) :].mean(dim=0).numpy())
    for emotion in ("gratitude", "anger"):
        difference = np.mean(means[emotion], axis=0) - np.mean(means["neutral"], axis=0)
        np.testing.assert_allclose(plan.swept.fit.directions[emotion].vectors[2], difference, rtol=1e-3, atol=1e-5)
    decoding = plan.engine.decoding
    rows = [plan.row(cell) for cell in plan.cells() if cell.prompt_id == next(iter(plan.tokens))]
    found = run_packed(plan.stack, rows, decoding)
    for row in rows:
        assert_same_or_tied(plan.stack, row, found[row.cell.condition_id], decoding)


def test_a_sweep_of_conversations_keeps_them(here):
    """Its table of prompts says every turn, also when it is read again; an instruction follows in a conversation's own system turn."""
    path = write_conversations(here)
    result = invoke("sweep", "--model", "model", "--dataset", path.name, "--device", "cpu", *SHORT, "--layers", "1", "--num-random", "0",
                    "--template", "chat", "--arms", "direction,instruction")  # fmt: skip
    assert result.exit_code == 0, (result.output, result.exception)
    sweep = load_sweep(next(line.split()[1] for line in result.output.splitlines() if line.startswith("Run ")))
    data = [json.loads(line)["messages"] for line in path.read_text().splitlines()][12:]
    found = {(row["text"], row["before"]) for row in sweep.prompts.to_dict("records")}
    assert found == {(said[-1]["content"], json.dumps([[turn["role"], turn["content"]] for turn in said[:-1]])) for said in data}
    plan = plan_of(here, template="chat", dataset=str(path), arms="direction,instruction")
    condition = next(condition for condition in plan.conditions if condition.kind == "instruction")
    texts = [plan.loaded.tokenizer.decode(ids) for ids in plan.fronted[condition.condition_id].values()]
    assert sum(f"the ring\n\n{condition.front}" in text for text in texts) == 2 and all(condition.front in text for text in texts)


@pytest.mark.parametrize(
    ("more", "messages", "message"),
    [
        (("--template", "none"), None, "template=none reads texts alone: give template=chat"),
        (STRICT, None, "conversation that ends with .* refuses a system turn .*System role not supported"),
        (STRICT, ("user", "user"), "conversation that ends with 'turn 1': .* refuses turns of user, user .*must alternate"),
        (STRICT, ("assistant", "user"), "refuses turns of assistant, user"),
    ],
)
@pytest.mark.parametrize("command", ["sweep", "heads", "study", "vectors"])
def test_conversations_that_cannot_be_are_a_line_before_the_weights(here, tmp_path, monkeypatch, command, more, messages, message):
    monkeypatch.setattr(loading, "_load_model", lambda *args: 1 / 0)
    table = [json.loads(line) for line in write_conversations(here).read_text().splitlines()]
    if messages is not None:
        odd = [{"role": role, "content": f"turn {i}"} for i, role in enumerate(messages)]
        table = [row | {"messages": [turn for turn in row["messages"] if turn["role"] != "system"]} for row in table]
        table += [{"emotion": "neutral", "messages": odd + ([{"role": "assistant", "content": "turn 2"}] if command == "vectors" else [])}]
    for i in range(4):  # a study needs more prompts
        table.append({"emotion": "neutral", "messages": [{"role": "user", "content": f"brick {i}"}]})
    (tmp_path / "odd.jsonl").write_text("\n".join(map(json.dumps, table)))
    words = ("--components", "2") if command == "vectors" else ("--scorers", "scorer", "--max-samples", "30")
    words += ("--controls", "isotropic") if command == "study" else ()
    result = invoke(command, "--model", "model", "--device", "cpu", "--dataset", str(tmp_path / "odd.jsonl"), *words, *more)
    said = message.replace("turn 1", "turn 2") if command == "vectors" else message
    assert result.exit_code == 2 and re.search(said, result.output), (result.output, result.exception)
    assert isinstance(result.exception, SystemExit) and result.output.count("Error:") == 1


def test_an_alignment_and_a_restored_head_need_texts(here, tmp_path):
    path = write_conversations(here)
    result = invoke("align", "--model-a", "model", "--model-b", "model", "--dataset", path.name, "--device", "cpu", "--k-max", "1")
    assert result.exit_code == 2 and "an alignment reads texts as they are" in result.output, (result.output, result.exception)
    heads = invoke("heads", "--model", "model", "--dataset", path.name, "--device", "cpu", "--operation", "restore", "--scorers", "scorer")
    assert heads.exit_code == 2 and "continues texts of each emotion" in heads.output, (heads.output, heads.exception)


def test_chat_and_text_are_different_work_under_the_same_conditions(place):
    """Ids join what was done to the model; settings say to which tokens; what a sweep of an earlier version did has the hash it had."""
    plain, chat, auto = (plan_of(place, template=name) for name in ("none", "chat", "auto"))
    assert [c.condition_id for c in plain.conditions] == [c.condition_id for c in chat.conditions]
    assert chat.config == auto.config and chat.config.fit_on == "response" and plain.config.fit_on == "text"
    assert work_hash(plain.config) != work_hash(chat.config) == work_hash(auto.config)
    others = [plan_of(place, template="chat", **more).config for more in ({"system": SYSTEM}, {"fit_on": "last"})]
    assert len({work_hash(config) for config in (chat.config, *others)}) == 3


def test_a_steered_model_answers_as_the_sweep_did(place, tmp_path):
    """From its own files, in which a model that was logged before there were templates has none."""
    plan = plan_of(place, template="chat", system=SYSTEM)
    result = run(plan, [], lambda pack: None, lambda *args: None)
    condition = next(c for c in plan.conditions if c.kind == "emotion" and c.alpha == 1)
    config = asdict(plan.config)
    generation = GenerationDefaults(**{name: config[name] for name in GenerationDefaults.__dataclass_fields__})
    spec, norm = plan.loaded.spec, float(plan.swept.fit.residual_norms[condition.layer])
    settings = Settings(spec, plan.loaded.fingerprint, condition, norm, generation, "0" * 32)
    vector = plan.swept.fit.directions[condition.emotion].vectors[condition.layer]
    save_steered(tmp_path, settings, vector, None, include_weights=False)
    done = result.completions
    expected = done[done["condition_id"] == condition.condition_id].set_index("prompt_id")["completion"]
    prompts = result.prompts.set_index("prompt_id")["text"]
    baseline = done[done["condition_id"] == plan.conditions[0].condition_id].set_index("prompt_id")["completion"]
    assert (expected != baseline[expected.index]).any()
    steered = load_steered(tmp_path, device="cpu")
    assert steered.complete(list(prompts)) == list(expected[prompts.index])
    payload = json.loads((tmp_path / SETTINGS).read_text())
    del payload["generation"]["template"], payload["generation"]["system"]
    (tmp_path / SETTINGS).write_text(json.dumps(payload))
    assert load_steered(tmp_path, device="cpu").settings.generation.template == "none"


@pytest.fixture
def here(place, tmp_path, monkeypatch) -> Path:
    """The place as the current folder, with a store and a cache of its own."""
    monkeypatch.setenv("EMO_MLFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/store.db")
    monkeypatch.chdir(place)
    return place


def invoke(*words: str):
    return CliRunner().invoke(main, list(words))


COMMON = ("--dataset", "data.jsonl", "--device", "cpu")
SHORT = ("--scorers", "scorer", "--sequence-length", "4", "--max-samples", "6")


def test_a_study_and_vectors_of_chats(here):
    """Their runs say how texts became tokens, and `auto` says what it took."""
    words = ("--items", "items.jsonl", "--alpha", "0.05", "--procedure", "sequence", "--controls", "isotropic")
    result = invoke("study", "--model", "model", *COMMON, *SHORT, *words, "--template", "auto")
    assert result.exit_code == 0, (result.output, result.exception)
    assert "Template   chat: a prompt is a user's turn" in result.output and "the assistant's tokens" in result.output
    run_id = next(line.split()[1] for line in result.output.splitlines() if line.startswith("Run "))
    folder = Path(MlflowClient().download_artifacts(run_id, ""))
    design = json.loads((folder / "design.json").read_text())
    assert (design["template"], design["fit_on"], design["system"]) == ("chat", "response", "")
    assert len(pd.read_parquet(folder / "completions.parquet")) > 0
    words = ("--emotions", "gratitude", "--n-bootstrap", "4", "--components", "2")
    fitted = invoke("vectors", "--model", "model", *COMMON, *words, "--template", "auto")
    assert fitted.exit_code == 0 and "Template   chat" in fitted.output, (fitted.output, fitted.exception)


def test_a_sweep_says_its_template_and_keeps_it(here):
    result = invoke("sweep", "--model", "model", *COMMON, *SHORT, "--layers", "1", "--num-random", "0", "--template", "chat", "--system", SYSTEM)
    assert result.exit_code == 0, (result.output, result.exception)
    run_id = next(line.split()[1] for line in result.output.splitlines() if line.startswith("Run "))
    config = load_sweep(run_id).config
    assert (config["template"], config["system"], config["fit_on"]) == ("chat", SYSTEM, "response")


@pytest.mark.parametrize("command", ["sweep", "heads", "study", "vectors"])
def test_a_refused_system_turn_is_a_line(here, command):
    more = ("--components", "2") if command == "vectors" else SHORT
    result = invoke(command, "--model", "strict", *COMMON, *more, "--template", "chat", "--system", SYSTEM)
    assert result.exit_code == 2 and "refuses a system turn" in result.output and "leave out system=" in result.output
    nothing = invoke(command, "--model", "model", *COMMON, *more, "--system", SYSTEM)
    assert nothing.exit_code == 2 and "needs a chat template" in nothing.output


def test_a_designs_id_is_what_it_was_before_there_were_templates():
    """A study that was begun earlier goes on; one whose template was changed does not go on unnoticed."""
    design = design_of()
    before = {name: value for name, value in design.as_json().items() if name not in ("template", "system", "fit_on")}
    assert design.design_id == digest(before)
    assert len({replace(design, **{name: "chat"}).design_id for name in ("template", "system", "fit_on")} | {design.design_id}) == 4


def test_one_request_for_all():
    """A request with an emotion in it would be in every direction's texts alike, and steer the answers."""
    assert not {"feel", "happy", "sorry", "thank", "angry"} & set(REQUEST.lower().rstrip(".").split())

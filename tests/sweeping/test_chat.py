"""Chats through every command: a sweep's texts are the definition's on the template's tokens, and steered models and studies follow."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest
from chat_models import save_chat
from click.testing import CliRunner
from mlflow import MlflowClient
from packs import assert_same_or_tied, run_packed
from places import write_worded_texts
from study_world import design_of
from tiny_scorers import write_scorer

from emo_mlflow import load_sweep
from emo_mlflow.cli.main import main
from emo_mlflow.models.chat import REQUEST
from emo_mlflow.scoring.cards import Head
from emo_mlflow.serving.steered_model import SETTINGS, GenerationDefaults, Settings, load_steered, save_steered
from emo_mlflow.settings.sweep import make_config, work_hash
from emo_mlflow.sweeping.plan import Plan, make_plan, prepare
from emo_mlflow.sweeping.run import run
from emo_mlflow.types import digest

WORDS = {"gratitude": "you and the", "anger": "ring thin hour", "neutral": "stone brick road"}
SYSTEM = "You are the one."


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

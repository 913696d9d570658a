"""Bands of layers, combinations of directions, and parts of a text through a sweep: exact, told apart in every table, or refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from packs import assert_same_or_tied, run_packed
from places import write_worded_texts
from tiny_models import save_tiny
from tiny_scorers import write_scorer

from emo_mlflow import load_sweep
from emo_mlflow.cli.main import main
from emo_mlflow.directions.controls import random_control
from emo_mlflow.errors import UserError
from emo_mlflow.scoring.cards import Head
from emo_mlflow.settings.sweep import make_config, make_head_config, work_hash
from emo_mlflow.sweeping.plan import Plan, make_plan, prepare
from emo_mlflow.sweeping.results import condition_of
from emo_mlflow.sweeping.tables import condition_rows
from emo_mlflow.types import Condition, Edit

WORDS = {"gratitude": "you and the", "anger": "ring thin hour", "neutral": "stone brick road"}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    save_tiny(folder / "model", "llama")
    write_scorer(folder / "scorer", (Head("goemotions", ("gratitude", "anger"), "sigmoid", "logits", temperature=2.0),))
    write_worded_texts(folder, WORDS, n_fit=6, n_test=6)
    return folder


def plan_of(place: Path, **given: str) -> Plan:
    settings = {"model": str(place / "model"), "dataset": str(place / "data.jsonl"), "scorers": str(place / "scorer")}
    settings |= {"layers": "1+2", "alphas": "1,8", "sequence_length": "8", "max_samples": "2", "num_random": "1", "device": "cpu"}
    return make_plan(prepare(make_config("smoke", {**settings, **given})))


@pytest.mark.parametrize("scope", ["window", "generated", "all", "prompt", "prompt:2", "first:3"])
@pytest.mark.parametrize(
    "more", [{"combine": "gratitude+ANGER:-0.5"}, {"layers": "0+3,1+2", "operation": "clamp"}, {"layers": "2", "combine": "anger:2+gratitude"}]
)
def test_several_edits_are_steered_exactly(place, scope, more):
    """Each condition of a sweep, controls too: token by token the definition's."""
    plan = plan_of(place, scope=scope, **more)
    prompt = plan.inputs.prompts.test[0].prompt_id
    rows = [plan.row(cell) for cell in plan.cells() if cell.prompt_id == prompt]
    assert len({row.cell.condition_id for row in rows}) == len(rows)
    found = run_packed(plan.stack, rows, plan.engine.decoding)
    for row in rows:
        assert_same_or_tied(plan.stack, row, found[row.cell.condition_id], plan.engine.decoding)


def test_what_each_edit_injects(place):
    """Shares of alpha, the direction of its own layer, and for a control a random direction in place of every one, of its norm."""
    plan = plan_of(place, combine="gratitude+anger:-0.5", alphas="2")
    by_name = {(c.kind, c.emotion): c for c in plan.conditions}
    both = by_name["emotion", "gratitude and -0.5 anger"]
    assert both.every_edit == (Edit("gratitude", 1), Edit("anger", 1, -0.5), Edit("gratitude", 2), Edit("anger", 2, -0.5))
    patch = plan._patch(both.condition_id)
    for edit, done in zip(both.every_edit, (patch, *patch.then), strict=True):
        np.testing.assert_allclose(done.shift, plan.swept.fit.directions[edit.emotion].vectors[edit.layer], rtol=1e-5)
        assert done.boundary == edit.layer and set(done.alpha_by_step) == {np.float32(2 * edit.weight)}
    drawn = plan._patch(by_name["random", "gratitude and -0.5 anger"].condition_id)
    for edit, done in zip(both.every_edit, (drawn, *drawn.then), strict=True):
        own = plan.swept.fit.directions[edit.emotion].vectors[edit.layer]
        expected, _ = random_control(own, None, seed=0, emotion=edit.emotion, layer=edit.layer, draw=0)
        np.testing.assert_array_equal(done.shift, expected)
        assert np.linalg.norm(done.shift) == pytest.approx(np.linalg.norm(own), rel=1e-4)


def test_conditions_come_back_from_their_table(place):
    """Guards: a band that a steered model, or a later comparison, takes for a single layer."""
    plan = plan_of(place, combine="gratitude+anger:-0.3333333333", scope="first:3")
    table = condition_rows(plan.conditions, plan.swept)
    back = [condition_of(row) for row in table.to_dict("records")]
    assert [c.condition_id for c in back[1:]] == [c.condition_id for c in plan.conditions[1:]]
    assert {c.scope for c in back[1:]} == {"first"} and {c.patch_window for c in back[1:]} == {3}
    single = plan_of(place, layers="1", scope="first:3")
    assert condition_rows(single.conditions)["edits"].isna().all()
    assert not {c.condition_id for c in single.conditions[1:]} & {c.condition_id for c in plan.conditions[1:]}
    band = next(c for c in plan.conditions if c.edits)
    assert replace(band, edits="").condition_id == Condition(**{**vars(replace(band, edits="")), "control": None}).condition_id
    assert len({work_hash(p.config) for p in (plan, single, plan_of(place, scope="first:3"))}) == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layers": "1+2,3"}, "has bands and 3: give single layers in a sweep of their own"),
        ({"layers": "1+2,1+3"}, "two bands that begin at one layer"),
        ({"layers": "1+9"}, "layer 9 does not exist: the model has layers 0 to 3"),
        ({"combine": "gratitude+joy"}, "names joy, which this sweep does not have: it has gratitude, anger"),
        ({"combine": "gratitude"}, "is no combination"),
        ({"combine": "gratitude+anger:0"}, "is no combination"),
        ({"combine": "gratitude+anger:much"}, "is not a number"),
        ({"combine": "gratitude+anger:1e308"}, "has the share 1e\\+308: give shares of 1e-06 to 1e\\+06 in size"),
        ({"combine": "gratitude+anger:1e-320"}, "give shares of"),
        ({"layers": "1+1"}, "names a layer twice in 1\\+1"),
        ({"combine": "gratitude++anger"}, "is no combination"),
        ({"scope": "first"}, "is not one of window, generated, all, prompt, prompt:K or first:K"),
        ({"scope": "prompt:0"}, "is not one of"),
    ],
)
def test_what_cannot_be_is_a_line(place, given, message):
    with pytest.raises(UserError, match=message) as caught:
        plan_of(place, **given)
    assert "\n" not in str(caught.value)


def test_heads_have_no_bands():
    with pytest.raises(UserError, match="has bands, which are for directions"):
        make_head_config("smoke", {"layers": "1+2"}).resolved(("anger",), 4)


def test_through_the_commands(place, tmp_path, monkeypatch):
    """A sweep with both, compared with its single directions; what a steered model does not have is said."""
    monkeypatch.setenv("EMO_MLFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/store.db")
    monkeypatch.chdir(place)

    def invoke(*words: str):
        return CliRunner().invoke(main, list(words))

    words = ["--model", "model", "--dataset", "data.jsonl", "--scorers", "scorer", "--device", "cpu", "--sequence-length", "5"]
    done = invoke("sweep", *words, "--layers", "1+2", "--alphas", "4", "--combine", "gratitude+anger", "--scope", "prompt:2", "--num-random", "2")
    assert done.exit_code == 0, (done.output, done.exception)
    run_id = next(line.split()[1] for line in done.output.splitlines() if line.startswith("Run "))
    sweep = load_sweep(run_id)
    assert (sweep.config["bands"], sweep.config["combine"], sweep.config["scope"]) == ("1+2", "gratitude+anger", "prompt:2")
    assert (sweep.conditions["edits"].dropna() != "").all() and sweep.conditions["edits"].notna().sum() == 9
    compared = invoke("compare", "--runs", run_id)
    assert compared.exit_code == 0, (compared.output, compared.exception)
    refused = invoke("log-model", "--run-id", run_id, "--emotion", "gratitude", "--layer", "1", "--alpha", "4")
    assert refused.exit_code == 2 and "has several edits" in refused.output

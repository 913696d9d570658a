"""`alpha_unit=kl`: each direction of a sweep, fitted or drawn, does the damage that its alpha says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from places import write_texts
from plain_passes import plain_logits
from tiny_models import save_tiny
from tiny_scorers import write_scorer

from emo_mlflow.errors import UserError
from emo_mlflow.settings.sweep import make_config
from emo_mlflow.steering.strength import N_PASSAGES, TOLERANCE, passage_tokens
from emo_mlflow.sweeping.grid import intervention
from emo_mlflow.sweeping.plan import Plan, make_plan, prepare
from emo_mlflow.sweeping.run import run


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("doses")
    save_tiny(folder / "model", "llama")
    write_scorer(folder / "scorer")
    write_texts(folder, ("joy", "neutral"), 6)
    return folder


def plan_of(place: Path, **given: str) -> Plan:
    settings = {"model": str(place / "model"), "dataset": str(place / "data.jsonl"), "scorers": str(place / "scorer")}
    settings |= {"layers": "1,2", "sequence_length": "6", "max_samples": "2", "num_random": "1", "device": "cpu"}
    return make_plan(prepare(make_config("smoke", {**settings, **given})))


def test_a_condition_does_the_damage_that_its_alpha_says(place):
    """Measured by a plain forward pass; the random direction has a strength of its own; windows and schedules do not count."""
    plan = plan_of(place, alpha_unit="kl", alphas="0.1,-0.05,0", scope="window", patch_window="2,3", alpha_schedule="linear")
    texts = passage_tokens(plan.loaded, prepend_bos=True)[:N_PASSAGES]
    shared: dict[object, set[float]] = {}
    for condition in plan.conditions[1:]:
        dose = plan.swept.dose(condition.condition_id)
        patch = intervention(plan.swept, condition, plan.config)
        assert np.sign(dose) == np.sign(condition.alpha) and patch.alpha_by_step[0] == np.float32(dose)
        shared.setdefault(replace(condition, patch_window=None), set()).add(dose)
        if condition.patch_window == 2:
            logits = [plain_logits(plan.loaded.model, tokens, [None, patch])[:, 1:-1].double().log_softmax(-1) for tokens in texts]
            kl = torch.cat([(clean.exp() * (clean - patched)).sum(-1) for clean, patched in logits]).mean()
            assert float(kl) == pytest.approx(abs(condition.alpha), rel=TOLERANCE + 1e-3, abs=1e-6)
    assert all(len(doses) == 1 for doses in shared.values()) and len(set.union(*shared.values())) == 1 + 2 * 2 * 2


@pytest.mark.parametrize("operation", ["add", "add_keep_norm"])
def test_several_edits_meet_a_budget_together(place, tmp_path, operation):
    """By one factor of all of them, measured by a plain forward pass; their weights, and random controls, are what they are otherwise."""
    write_texts(tmp_path, ("joy", "fear", "neutral"), 6)
    several = {"dataset": str(tmp_path / "data.jsonl"), "layers": "1+2", "combine": "joy:2+fear:-0.5"}
    plan = plan_of(place, alpha_unit="kl", alphas="0.1,-0.05", scope="generated", operation=operation, **several)
    texts = passage_tokens(plan.loaded, prepend_bos=True)[:N_PASSAGES]
    assert {len(condition.every_edit) for condition in plan.conditions[1:]} == {2, 4}
    for condition in plan.conditions[1:]:
        dose = plan.swept.dose(condition.condition_id)
        patch = intervention(plan.swept, condition, plan.config)
        factors = {np.float32(dose * edit.weight) for edit in condition.every_edit}
        assert {edit.alpha_by_step[0] for edit in (patch, *patch.then)} == factors and np.sign(dose) == np.sign(condition.alpha)
        clean = [plain_logits(plan.loaded.model, tokens, [None])[0] for tokens in texts]
        edited = [plain_logits(plan.loaded.model, tokens, [patch])[0] for tokens in texts]
        logs = [[x[1:-1].double().log_softmax(-1) for x in pair] for pair in zip(clean, edited, strict=True)]
        kl = torch.cat([(before.exp() * (before - after)).sum(-1) for before, after in logs]).mean()
        assert float(kl) == pytest.approx(abs(condition.alpha), rel=TOLERANCE + 1e-3, abs=1e-6)


def test_the_dose_is_in_the_table_and_is_what_was_injected(place):
    """A sweep in the unit of the direction with that strength writes the same texts."""
    result = run(plan_of(place, alpha_unit="kl", alphas="0.2", layers="1"), [], lambda pack: None, lambda *args: None)
    rows = result.conditions.set_index("kind")
    assert pd.isna(rows.loc["baseline", "dose"]) and (rows["alpha"].dropna() == 0.2).all()
    texts = result.completions.set_index("condition_id")["completion"]
    for kind in ("emotion", "random"):
        alpha = str(rows.loc[kind, "dose"])
        other = run(plan_of(place, alphas=alpha, layers="1"), [], lambda pack: None, lambda *args: None)
        found = other.conditions.set_index("kind").loc[kind, "condition_id"]
        assert found != rows.loc[kind, "condition_id"] and other.conditions["dose"].isna().all()
        written = other.completions.set_index("condition_id")["completion"]
        assert list(written[found]) == list(texts[rows.loc[kind, "condition_id"]]) != list(texts[rows.loc["baseline", "condition_id"]])


def test_budgets_that_cannot_be_are_refused(place):
    for given, match in (
        ({"operation": "project_out", "alphas": "0.1"}, "operation=project_out has no strength"),
        ({"alphas": "1000"}, "no strength of the direction after 1 blocks does a damage of 1000 nats per token"),
    ):
        with pytest.raises(UserError, match=match):
            plan_of(place, alpha_unit="kl", **given)

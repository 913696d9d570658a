"""What holds in several models: what is said if each model's own study says it, how often that is wrong, and what cannot be put together."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from past_studies import past_study
from scipy import stats

from emo_mlflow.errors import UserError
from emo_mlflow.report.across_models import sentences, standing, write_across_models
from emo_mlflow.studying.across_models import across_models, at_least, together

STRONG = {"gratitude": 4.0, "anger": 4.0}


def found_of(*effects, **design):
    return across_models([past_study(f"m{i}", each, seed=i, **design) for i, each in enumerate(effects)])


def test_what_holds_in_every_model_is_said_with_its_error_rate():
    found = found_of(STRONG, STRONG, STRONG, n=30)
    rows = found.tables["together"].set_index("emotion")
    assert rows["holds"].tolist() == ["specific"] * 2 and rows["specific"].tolist() == [3, 3]
    assert all("in all 3 models" in line and "wrong in at most 5%" in line for line in sentences(found))
    for emotion, group in found.tables["answers"].groupby("emotion"):
        assert rows.loc[emotion, "p_all"] == group["p_all"].max() and rows.loc[emotion, "lowest"] == group["effect"].min()
    assert found.metrics["verdict.anger.specific"] == 3 and found.metrics["verdict.anger.models"] == 3


def test_one_model_without_it_is_enough_to_say_no():
    found = found_of(STRONG, {"gratitude": 4.0, "anger": 0.0}, n=30)
    rows = found.tables["together"].set_index("emotion")
    assert rows.loc["gratitude", "holds"] == "specific" and rows.loc["anger", "holds"] != "specific"
    line = next(line for line in sentences(found) if line.startswith("anger"))
    assert "not shown to hold in all 2 models" in line and "pecific in 1 of 2 (m0)" in line and "(m1)" in line
    assert standing(dict(rows.loc["anger"]), 2) == "specific in 1 of 2"


@pytest.mark.parametrize("procedure", ["holm", "sequence"])
def test_a_model_without_the_effect_is_seldom_overlooked(procedure):
    """Guards: a claim on all models that errs more often than one study does. Another model has each effect, without doubt."""
    wrong, over_emotions = 0, 0
    for seed in range(150):
        one = past_study("a", {"gratitude": 4.0, "anger": 0.0}, seed=2 * seed, n=12, procedure=procedure)
        two = past_study("b", {"gratitude": 0.0, "anger": 4.0}, seed=2 * seed + 1, n=12, procedure=procedure)
        rows = across_models([one, two]).tables["together"].set_index("emotion")
        claims = rows["holds"] == "specific"
        wrong += bool(claims["anger"])
        over_emotions += bool((claims & rows["corrected"]).any())
    allowed = stats.binom.ppf(0.999, 150, 0.05)
    assert wrong <= allowed and over_emotions <= allowed


def test_a_claim_over_all_emotions_is_corrected_over_them():
    """Two studies in Holm's order agree: 1/60 and 1/40, 1/20 still reject; in other orders the larger p of each emotion do not."""
    rows = [("g", 1 / 60), ("a", 1 / 40), ("s", 1 / 20)]
    base = {"metric": "m", "effect": 0.2, "low": 0.1, "p_baseline": 0.001, "specific": True, "steers": True}
    alike = pd.DataFrame([{"emotion": e, "p_all": p, **base} for e, p in rows * 2])
    assert together(alike, 2, False)["corrected"].all()
    other = pd.DataFrame([{"emotion": e, "p_all": p, **base} for e, p in [*rows, ("g", 1 / 20), ("a", 1 / 40), ("s", 1 / 60)]])
    table = together(other, 2, False)
    assert (table["holds"] == "specific").all() and not table["corrected"].any() and together(other, 2, True)["corrected"].all()
    assert table["p_all"].tolist() == [1 / 20, 1 / 40, 1 / 20]


def test_in_how_many_models_at_least():
    """With a correction over the models; too high in at most 5% of cases, also if all models but one have the effect."""
    assert at_least(np.array([1 / 60, 1 / 60, 0.3])) == 2 and at_least(np.array([1 / 20, 0.5])) == 0 and at_least(np.full(3, 1 / 60)) == 3
    assert at_least(np.array([0.04, 0.04])) == 0, "the first of two needs 0.025"
    rng = np.random.default_rng(0)
    for true in (0, 1, 3):
        p = np.concatenate([rng.uniform(0, 0.002, size=(4000, true)), rng.uniform(size=(4000, 4 - true))], axis=1)
        assert np.mean([at_least(row) > true for row in p]) < stats.binom.ppf(0.999, 4000, 0.05) / 4000


def test_emotions_that_only_some_have_are_said_not_to_hold_in_all():
    found = found_of(STRONG, {"gratitude": 4.0}, n=30)
    assert found.tables["together"].set_index("emotion").loc["anger", ["models", "holds"]].tolist() == [1, "not shown"]
    assert any("anger was not tested in m1" in note for note in found.notes)


def test_two_spellings_of_an_emotion_are_one():
    first, second = (past_study(f"m{i}", STRONG, seed=i, n=30) for i in range(2))
    places = [{**place, "emotion": place["emotion"].upper()} for place in second.design["places"]]
    spelt = {name: getattr(second, name).assign(emotion=lambda table: table["emotion"].str.upper()) for name in ("verdicts", "damage")}
    found = across_models([first, replace(second, design={**second.design, "places": places}, **spelt)])
    assert found.notes == across_models([first, second]).notes
    pd.testing.assert_frame_equal(found.tables["together"], across_models([first, second]).tables["together"])


def test_studies_that_cannot_be_put_together_are_refused():
    one, two = (past_study(f"m{i}", STRONG, seed=i, n=8) for i in range(2))
    scored = replace(two, facts={**two.facts, "scorer_fingerprints": {"hub": "x"}})
    places = [{**place, "metric": "goemotions.joy"} for place in two.design["places"]]
    labelled = replace(two, design={**two.design, "places": places})
    others = past_study("m3", {"apology": 1.0}, seed=3, n=8)
    for studies, message in (
        ([], "there is no study"),
        ([one], "is one study, of m0: give studies of at least two models"),
        ([one, one], "is given 2 times"),
        ([one, replace(one, run_id="f" * 32)], "are studies of one model"),
        ([one, scored], "scored by different scorers"),
        ([one, labelled], "have different own labels of gratitude, goemotions.gratitude and goemotions.joy"),
        ([one, others], "share no emotion: m0 has gratitude, anger; m3 has apology"),
    ):
        with pytest.raises(UserError, match=message):
            across_models(studies)


def test_other_designs_are_told_of():
    one = past_study("m0", STRONG, n=8)
    two = past_study("m1", STRONG, seed=1, n=10, unit="vector", controls=("isotropic", "covariance"), procedure="sequence")
    notes = across_models([one, replace(two, changed=True)]).notes
    wanted = ("controls: m0 isotropic, m1 isotropic+covariance", "procedure: m0 holm, m1 sequence", "strength: m0 0.2 kl, m1 0.2 vector")
    wanted += ("different prompts: m0 8, m1 10; 8 are in all", "design for m1 was changed")
    assert all(any(text in note for note in notes) for text in wanted)
    assert not across_models([one, past_study("m1", STRONG, seed=1, n=8)]).notes


def test_models_of_one_name_are_told_apart(tmp_path):
    one, two = past_study("m0", STRONG, n=8), replace(past_study("m1", STRONG, seed=1, n=8), model="m0")
    found = across_models([one, two])
    assert len({study.model for study in found.studies}) == 2
    write_across_models(found, tmp_path)
    report = (tmp_path / "report.md").read_text()
    titles = ("What restricts this", "By emotion and model", "At what price", "How sure", "The studies")
    assert report.index(titles[1]) > 0 and all(report.index(a) < report.index(b) for a, b in pairwise(titles[1:]))
    assert {path.name for path in tmp_path.iterdir()} >= {"report.html", "answers.csv", "rungs.parquet", "together.csv", "figures"}

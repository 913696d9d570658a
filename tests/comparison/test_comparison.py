"""The tables of a comparison: what they find in sweeps whose truth is planted, and what they refuse."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic import METRICS, TARGETS, as_source, synthetic_sweep

from emo_mlflow.comparison import Comparison, Source, compare_sweeps
from emo_mlflow.comparison.contrasts import matched_conditions
from emo_mlflow.comparison.k_selection import k_selection
from emo_mlflow.comparison.responses import responses
from emo_mlflow.comparison.search import search
from emo_mlflow.errors import UserError
from emo_mlflow.statistics import corrected, paired_effects, specific_effects
from emo_mlflow.sweeping.schemas import FLUENCY

KEYS = ["condition_id", "prompt_id", "sample"]


@cache
def sources() -> tuple[Source, Source]:
    """Two models of six and eight layers; the second does nothing."""
    first = synthetic_sweep("model-a", alphas=(-2.0, 1.0, 2.0, 4.0), n_random=20)
    second = synthetic_sweep("model-b", n_layers=8, alphas=(-2.0, 1.0, 2.0, 4.0), effect=0.0, n_random=20)
    return as_source(first), as_source(second)


@cache
def comparison() -> Comparison:
    """Of both models."""
    return compare_sweeps(sources(), n_bootstrap=300)


@cache
def planned() -> Comparison:
    """Of both models on three layers, with draws that are enough for three cases each: `59`, and a family per model."""
    shape = {"alphas": (-2.0, 1.0, 2.0, 4.0), "layers": (1, 3, 5), "n_random": 59}
    both = [as_source(synthetic_sweep(model, effect=effect, **shape)) for model, effect in (("model-a", 0.3), ("model-b", 0.0))]
    return compare_sweeps(both, family="own,model", n_bootstrap=2)


def test_every_table_is_documented() -> None:
    """A table that no page names is one that nobody reads."""
    page = (Path(__file__).parents[2] / "docs" / "statistics.md").read_text(encoding="utf-8")
    described = set(re.findall(r"^(?:## |\| `)(\w+)", page, flags=re.M))
    assert set(comparison().tables) <= described & set(re.findall(r"\w+", str(Comparison.__doc__)))


def test_effect_sizes_are_the_paired_effects_of_their_cells() -> None:
    """Guards against keys that slip against the numbers beside them."""
    table = comparison().tables["effect_sizes"]
    assert not table.duplicated(["model", "emotion", "layer", "alpha", "scope", "patch_window", "metric"]).any()
    assert len(table) == 2 * 3 * 4 * (len(METRICS) + len(FLUENCY)) * 7
    source = sources()[1]
    for row in table[table["model"] == "model-b"].sample(8, random_state=0).to_dict("records"):
        condition = source.conditions.set_index("condition_id").loc[row["condition_id"]]
        assert (condition["emotion"], condition["layer"], condition["alpha"]) == (
            row["emotion"],
            row["layer"],
            row["alpha"],
        )
        if row["metric"].startswith("fluency."):
            values = source.completions.set_index(KEYS)[row["metric"].partition(".")[2]].astype(np.float32)
        else:
            values = source.scores.set_index(KEYS)[row["metric"]]
        baseline = source.conditions.loc[source.conditions["kind"] == "baseline", "condition_id"].item()
        arms = [
            values.loc[condition_id].sort_index().to_numpy()[:, None]
            for condition_id in (baseline, row["condition_id"])
        ]
        expected = paired_effects(*arms, n_bootstrap=300).iloc[0]
        for column in ("n", "mean_diff", "d_z", "p_t", "p_permutation"):
            assert row[column] == pytest.approx(expected[column], rel=1e-6, nan_ok=True)


def test_specificity_compares_with_the_random_controls_of_the_same_setting() -> None:
    """Guards against draws of another layer, alpha or emotion, and draws pooled over prompts."""
    table, source = comparison().tables["specificity"], sources()[0]
    sweep = responses(source)
    row = table[
        (table["model"] == "model-a") & (table["emotion"] == "anger") & (table["layer"] == 2) & (table["alpha"] == 2.0)
    ]
    row = row[row["metric"] == "goemotions.joy"].iloc[0]
    same = source.conditions[
        (source.conditions["emotion"] == "anger")
        & (source.conditions["layer"] == 2)
        & (source.conditions["alpha"] == 2.0)
    ]
    own, draws = (same[same["kind"] == kind]["condition_id"] for kind in ("emotion", "random"))
    metric = sweep.metric("goemotions.joy")
    pick = [sweep.change[[sweep.position(i) for i in ids]][:, :, [metric]] for ids in (own, draws)]
    expected = specific_effects(pick[0][0], pick[1]).iloc[0]
    for column in expected.index.drop(["alternative", "reason"]):
        assert row[column] == pytest.approx(expected[column], rel=1e-5)
    assert (row["n_draws"], row["alternative"], row["smallest_p"]) == (20, "two-sided", 2 / 21)


def test_specificity_is_asked_one_way_of_an_own_label() -> None:
    """Guards against a test about 0 where draws shift one way, and against one that asks a negative strength to raise the label."""
    table = comparison().tables["specificity"]
    own = table[table["own"]]
    assert set(own["metric"]) == set(TARGETS.values()) and (own["emotion"].map(TARGETS) == own["metric"]).all()
    assert (own["alternative"] == np.where(own["alpha"] > 0, "greater", "less")).all()
    assert (table.loc[~table["own"], "alternative"] == "two-sided").all()
    removed = compare_sweeps([as_source(synthetic_sweep("model-a", settings={"operation": "project_out"}))], n_bootstrap=2)
    assert set(removed.tables["specificity"].query("own")["alternative"]) == {"less"}


def test_a_draw_without_a_score_is_no_draw_of_that_test_alone() -> None:
    """Guards against a random direction whose scorer failed once taking the test, or the others' draws, with it."""
    source = sources()[0]
    gone = source.conditions[(source.conditions["emotion"] == "anger") & (source.conditions["draw"] == 3)]["condition_id"]
    scores = source.scores.copy()
    scores.loc[scores["condition_id"] == gone.iloc[0], "goemotions.joy"] = np.nan
    table = compare_sweeps([replace(source, scores=scores)], n_bootstrap=2).tables["specificity"]
    counts = table.groupby("metric")["n_draws"].min()
    assert counts.drop("goemotions.joy").eq(20).all() and counts["goemotions.joy"] == 19
    assert table["p"].notna().all() and (table["n_draws"] == 19).sum() == 1


@pytest.mark.parametrize(
    ("family", "groups"),
    [("comparison", ["own"]), ("own, model", ["own", "model"]), ("model", ["model"]), ("metric, model", ["metric", "model"])],
)
def test_families_are_explicit(family: str, groups: list[str]) -> None:
    """Guards against corrections over one metric each, a family size that is not the family's, and likelihoods and bigrams, which any
    direction changes, that carry own labels through Benjamini and Hochberg's correction."""
    tables = compare_sweeps(sources(), family=family, n_bootstrap=2).tables
    for name, p in (("effect_sizes", "p_permutation"), ("specificity", "p"), ("dose", "p")):
        for _, part in tables[name].groupby(groups):
            assert part["family"].nunique() == 1
            assert (part["family_size"] == part[p].notna().sum()).all()
            expected = corrected(part[p], [0] * len(part))
            for column in ("p_holm", "p_bh"):
                assert part[column].to_numpy() == pytest.approx(expected[column].to_numpy(), nan_ok=True)


def test_the_planted_effect_is_found_and_no_other() -> None:
    """Guards against a comparison that calls a model specific that does nothing, or misses one that does."""
    table = planned().tables["recommendations"].set_index(["model", "emotion"])
    for emotion, target in TARGETS.items():
        row = table.loc[("model-a", emotion)]
        assert (row["reason"], row["layer"], row["alpha"], row["target"]) == ("specific", 3, 2.0, target)
        assert row["low"] < 0.3 * np.tanh(2) / np.tanh(1) < row["high"]
        assert row["p_searched"] == row["smallest_searched"] == row["p_specific"] == 1 / 60
        assert (row["p_specific_holm"], row["cases"]) == (pytest.approx(0.05), 3)
        assert row["n_broken"] == 3 and row["candidates"] == 9  # not the negative strengths, which should lower the label
        assert table.loc[("model-b", emotion), "reason"] == "not_shown"
    found = planned().metrics
    assert found["gain.model-a.gratitude"] == pytest.approx(0.38, abs=0.1)
    assert (found["cases"], found["cases.specific"]) == (6, 3)
    assert found["tests"] == planned().tables["effect_sizes"]["p_permutation"].notna().sum()
    assert str(row["layer"]) == "3"


def test_a_rise_that_random_directions_are_too_few_for_is_not_specific() -> None:
    """Guards against "more than every random direction" as a finding: of 20 draws over three cases p is at least 0.14."""
    found = compare_sweeps(sources()[:1], n_bootstrap=2)
    for row in found.tables["recommendations"].to_dict("records"):
        assert row["reason"] == "steers" and row["p_holm"] < 0.05 and row["p_searched"] == 1 / 21
        assert row["p_specific_holm"] == pytest.approx(3 / 21)
    notes = {note.code: note.values for note in found.notes}
    assert (notes["few_random"]["needed"], notes["few_random"]["smallest_p"]) == (59, pytest.approx(3 / 21))
    assert (notes["few_random_each"]["tests"], notes["few_random_each"]["needed"]) == (72, 1439)
    assert "few_flips" not in notes  # 72 / 2^11 < 0.05
    both = {note.code: note.values for note in comparison().notes if note.values.get("label") == "model-a"}
    assert (both["few_flips"]["tests"], both["few_flips"]["needed"]) == (168, 13)


def test_random_directions_search_wherever_the_emotion_s_did() -> None:
    """Guards against the best of many conditions being compared with one condition of each draw; and against draws that break the text,
    or were not run everywhere, in that search."""
    source = as_source(synthetic_sweep("model-a", emotions=("anger",), alphas=(1.0,), layers=(2, 3), n_random=4, effect=0.3))
    metric = "goemotions.anger"

    def shifted(sizes: dict[tuple[int, int], float], **broken: float) -> pd.DataFrame:
        """The table of the search where draws at (layer, draw) change the label by so much."""
        baseline = source.conditions["condition_id"].iloc[0]
        base = source.scores[source.scores["condition_id"] == baseline].set_index("prompt_id")[metric]
        scores, completions = source.scores.copy(), source.completions.copy()
        for (layer, draw), size in sizes.items():
            chosen = source.conditions[(source.conditions["layer"] == layer) & (source.conditions["draw"] == draw)]["condition_id"].item()
            rows = scores["condition_id"] == chosen
            scores.loc[rows, metric] = scores.loc[rows, "prompt_id"].map(base) + np.float32(size)
            for name, value in broken.items():
                completions.loc[completions["condition_id"] == chosen, name] = value
        return search([responses(replace(source, scores=scores, completions=completions))]).set_index("condition_id")

    own = source.conditions[source.conditions["kind"] == "emotion"].set_index("layer")["condition_id"]
    assert shifted({}).loc[own, "p_searched"].tolist() == [1 / 5, 1 / 5]
    assert shifted({(2, 0): 5.0}).loc[own, "p_searched"].tolist() == [2 / 5, 2 / 5]  # at layer 2, and counts against layer 3 too
    table = shifted({(2, 0): 5.0, (3, 1): 5.0}, broken=0.9)
    assert table.loc[own, "p_searched"].tolist() == [1 / 5, 1 / 5] and table.loc[own, "draws_broken"].tolist() == [0.25, 0.25]
    table = shifted({(2, 0): np.nan})
    assert table["searched_draws"].tolist() == [3, 3] and table["smallest_searched"].tolist() == [1 / 4, 1 / 4]


def test_controls_that_break_the_text_are_no_control() -> None:
    """Guards against an effect being called specific because random directions of that length leave no text to express anything."""
    source = as_source(synthetic_sweep("model-a", emotions=("anger",), alphas=(1.0,), layers=(2, 3), n_random=19))
    drawn = set(source.conditions.loc[source.conditions["kind"] == "random", "condition_id"])
    completions = source.completions.assign(broken=np.where(source.completions["condition_id"].isin(drawn), 0.9, source.completions["broken"]))
    row = compare_sweeps([replace(source, completions=completions)], n_bootstrap=2).tables["recommendations"].iloc[0]
    assert (row["reason"], row["draws_broken"], row["p_specific"]) == ("void", 1.0, 1 / 20)
    assert compare_sweeps([source], n_bootstrap=2).tables["recommendations"]["reason"].tolist() == ["specific"]


def test_conditions_that_break_the_text_are_not_recommended_however_strong() -> None:
    """Guards against recommending noise: at alpha 4 the label is highest and the text repeats itself."""
    table = comparison().tables["tradeoff"]
    own = table[(table["model"] == "model-a") & (table["emotion"] == "gratitude") & (table["layer"] == 3)].set_index(
        "alpha"
    )
    assert own.loc[4.0, "effect"] > own.loc[1.0, "effect"]
    assert own["broken"].to_dict() == {-2.0: False, 1.0: False, 2.0: False, 4.0: True}
    doses = comparison().tables["dose"]
    breaks = doses[doses["model"] == "model-a"][["breaks_below", "breaks_above"]].drop_duplicates()
    assert breaks["breaks_above"].tolist() == [4.0] and breaks["breaks_below"].isna().all()


def test_the_front_holds_what_no_condition_dominates() -> None:
    """Guards against a front of the worst, or one that holds dominated conditions."""
    table = comparison().tables["tradeoff"]
    own = table[(table["model"] == "model-a") & (table["emotion"] == "anger")]
    goods = np.column_stack([own["gain"], -own["broken_rise"]])
    for i, on_front in enumerate(own["on_front"]):
        dominated = ((goods >= goods[i]).all(axis=1) & (goods > goods[i]).any(axis=1)).any()
        assert on_front == (not dominated)


def test_selectivity_sets_the_target_against_the_other_labels() -> None:
    """Guards against counting the target among the others, or other scorers' labels."""
    table = comparison().tables["selectivity"]
    row = table[
        (table["model"] == "model-a")
        & (table["emotion"] == "apology")
        & (table["layer"] == 3)
        & (table["alpha"] == 2.0)
    ].iloc[0]
    effects = comparison().tables["effect_sizes"]
    changes = effects[effects["condition_id"] == row["condition_id"]]
    changes = changes[changes["model"] == "model-a"].set_index("metric")["mean_diff"]
    others = changes[[m for m in METRICS if m.startswith("goemotions.") and m != "goemotions.remorse"]]
    assert row["others"] == len(others) == 3
    assert row["selectivity"] == pytest.approx(changes["goemotions.remorse"] - others.mean(), rel=1e-5)
    assert row["low"] < row["selectivity"] < row["high"] and row["target_rank"] == 1
    assert row["strongest_other"] == others.abs().idxmax()
    source = comparison().sweeps[0]
    position = source.position(row["condition_id"])
    draws = source.change[source.draws[position]].astype(float)
    rest = [source.metric(m) for m in others.index]
    theirs = (draws[:, :, source.metric("goemotions.remorse")] - draws[:, :, rest].mean(axis=2)).mean(axis=1)
    assert (row["draws_min"], row["draws_max"]) == pytest.approx((theirs.min(), theirs.max()), rel=1e-5)
    assert (row["n_draws"], row["p_random"]) == (20, (1 + (theirs >= row["selectivity"]).sum()) / 21)


def test_dose_has_the_baseline_at_zero() -> None:
    """Guards against slopes through strengths alone, and a dose for alpha where nothing is added."""
    table = comparison().tables["dose"]
    row = table[(table["model"] == "model-a") & (table["emotion"] == "anger") & (table["layer"] == 3)]
    row = row[row["metric"] == "goemotions.anger"].iloc[0]
    assert row["alphas"] == "-2, 0, 1, 2, 4"
    means = comparison().tables["effect_sizes"]
    means = means[
        (means["model"] == "model-a")
        & (means["emotion"] == "anger")
        & (means["layer"] == 3)
        & (means["metric"] == "goemotions.anger")
    ]
    expected = np.polyfit([*means["alpha"], 0.0], [*means["mean_diff"], 0.0], 1)[0]
    assert row["slope"] == pytest.approx(expected, rel=1e-4)
    assert row["slope_low"] < row["slope"] < row["slope_high"] and 0.7 < row["spearman"] <= 1
    assert row["n"] == row["spearman_n"] == 12 and row["p"] == 2**-11 and row["p_t"] < 0.01
    clamped = as_source(synthetic_sweep("model-a", settings={"operation": "clamp"}))
    assert compare_sweeps([clamped], n_bootstrap=2).tables["dose"]["alphas"].unique().tolist() == ["1, 2"]
    single = as_source(synthetic_sweep("model-a", alphas=(1.0,)))
    assert compare_sweeps([single], n_bootstrap=2).tables["dose"].empty


def test_layers_are_matched_by_relative_depth() -> None:
    """Guards against comparing layer 6 of 12 with layer 6 of 24."""
    few, many = (responses(as_source(synthetic_sweep(m, n_layers=n, alphas=(1.0,)))) for m, n in (("a", 4), ("b", 8)))
    for first, second, swap in ((few, many, False), (many, few, True)):
        pairs = matched_conditions(first, second)
        layers = [sweep.conditions.loc[pairs[side], "layer"].tolist() for sweep, side in ((first, "a"), (second, "b"))]
        few_layers, many_layers = layers[::-1] if swap else layers
        assert [2 * layer for layer in few_layers] == many_layers
        assert len(pairs) == 3 * 4


def test_contrasts_are_paired_differences_of_differences() -> None:
    """Guards against contrasts of means over different prompts, and a sign that depends on which model has fewer layers."""
    table = comparison().tables["model_contrasts"]
    effects = (
        comparison().tables["effect_sizes"].set_index(["model", "emotion", "layer", "alpha", "metric"])["mean_diff"]
    )
    for row in table.sample(10, random_state=1).to_dict("records"):
        both = [
            effects[row[f"model_{s}"], row["emotion"], row[f"layer_{s}"], row["alpha"], row["metric"]] for s in "ab"
        ]
        assert row["difference"] == pytest.approx(both[0] - both[1], abs=1e-6)
    reverse = compare_sweeps(sources()[::-1], n_bootstrap=2).tables["model_contrasts"]
    keys = ["emotion", "alpha", "metric"]
    mine = table.set_index([*keys, "layer_a", "layer_b"])["difference"].sort_index()
    theirs = -reverse.set_index([*keys, "layer_b", "layer_a"])["difference"].sort_index()
    assert mine.to_numpy() == pytest.approx(theirs.to_numpy(), abs=1e-6)


def test_the_summary_over_models_knows_that_they_differ() -> None:
    """Guards against a mean over models that hides that one of two does nothing."""
    table = comparison().tables["model_summary"]
    row = table[
        (table["emotion"] == "anger")
        & (table["alpha"] == 2.0)
        & (table["depth"] == 0.5)
        & (table["metric"] == "goemotions.anger")
    ].iloc[0]
    assert row["k"] == 2 and row["i2"] > 0.9 and row["p_heterogeneity"] < 1e-6
    assert row["layers"] == "model-a: 3, model-b: 4"


def test_two_spellings_of_an_emotion_are_one() -> None:
    """Guards against `Gratitude` of one sweep and `gratitude` of another as two emotions of one model each."""
    first, second = sources()
    spelt = {"gratitude": "Gratitude", "anger": "ANGER"}
    tables = {name: getattr(second, name).assign(emotion=getattr(second, name)["emotion"].replace(spelt)) for name in ("conditions", "prompts")}
    found = compare_sweeps([first, replace(second, **tables)], n_bootstrap=2)
    assert set(found.tables["effect_sizes"]["emotion"]) == {"gratitude", "anger", "apology"}
    alike = compare_sweeps([first, second], n_bootstrap=2)
    for name in ("model_summary", "model_contrasts"):
        pd.testing.assert_frame_equal(found.tables[name], alike.tables[name])


def test_two_sweeps_of_one_model_are_told_apart_and_not_summarised() -> None:
    """Guards against one label for two sweeps, whose rows then mix, and a summary over models of one model."""
    both = [as_source(synthetic_sweep("model-a", scope=scope)) for scope in ("generated", "window")]
    found = compare_sweeps(both, n_bootstrap=2)
    assert [source.label for source in found.sources] == ["model-a (scope generated)", "model-a (scope window)"]
    assert found.tables["model_summary"].empty
    assert len(found.tables["model_contrasts"]) == 3 * 6 * 2 * (len(METRICS) + len(FLUENCY))
    assert any(note.code == "settings_differ" and note.values["name"] == "scope" for note in found.notes)
    twins = [replace(as_source(synthetic_sweep("model-a")), run_id=str(i) * 32) for i in (1, 2)]
    assert len({source.label for source in compare_sweeps(twins, n_bootstrap=2).sources}) == 2


def test_several_windows_and_samples_are_kept_apart_and_together() -> None:
    """Guards against windows that overwrite each other, and samples that count as prompts."""
    sampled = compare_sweeps([as_source(synthetic_sweep("model-a", samples=3, n_prompts=7))], n_bootstrap=2)
    assert sampled.tables["effect_sizes"]["n"].max() == 7
    one = synthetic_sweep("model-a", scope="window", alphas=(1.0,), layers=(2, 3))
    other = one.conditions.copy()
    rename = {c: f"{c}w5" for c in other.loc[other["kind"] != "baseline", "condition_id"]}
    other["condition_id"] = other["condition_id"].map(rename)
    conditions = pd.concat(
        [one.conditions, other.dropna(subset=["condition_id"]).assign(patch_window=5)], ignore_index=True
    )
    double = {
        name: pd.concat([t, t[t["condition_id"].isin(rename)].replace({"condition_id": rename})])
        for name, t in (("scores", one.scores), ("completions", one.completions))
    }
    source = replace(as_source(one), conditions=conditions.astype({"patch_window": "Int64"}), **double)
    found = compare_sweeps([source], n_bootstrap=2).tables
    assert found["effect_sizes"].groupby("patch_window").size().tolist() == [60, 60]
    assert (found["specificity"]["n_draws"] == 5).all()


def test_failed_cells_drop_their_pair_and_are_reported() -> None:
    """Guards against a failed cell that shifts the pairs after it, silently."""
    source = sources()[0]
    cell = source.completions[source.completions["condition_id"] == source.conditions["condition_id"].iloc[1]].index[2]
    completions = source.completions.copy()
    completions["failure"] = completions["failure"].astype(object)
    completions.loc[cell, "failure"] = "overflow"
    key = completions.loc[cell, KEYS]
    scores = source.scores[~(source.scores[KEYS] == key).all(axis=1)]
    found = compare_sweeps([replace(source, completions=completions, scores=scores)], n_bootstrap=2)
    rows = found.tables["effect_sizes"]
    assert (rows.loc[rows["condition_id"] == key["condition_id"], "n"] == 11).all()
    assert (rows.loc[rows["condition_id"] != key["condition_id"], "n"] == 12).all()
    assert next(note for note in found.notes if note.code == "failed_cells").values["failed"] == 1


def test_different_prompts_restrict_only_what_they_must_and_say_so() -> None:
    """Guards against a silent intersection."""
    short = as_source(synthetic_sweep("model-b", n_prompts=9))
    found = compare_sweeps([sources()[0], short], n_bootstrap=2)
    assert found.tables["effect_sizes"].groupby("model")["n"].max().to_dict() == {"model-a": 12, "model-b": 9}
    assert found.tables["model_contrasts"]["n"].max() == 9
    note = next(note for note in found.notes if note.code == "prompts_differ")
    assert note.values == {"shared": 9, "counts": "model-a: 12, model-b: 9"}


def test_without_random_controls_nothing_is_called_specific() -> None:
    """Guards against specificity from no draws."""
    found = compare_sweeps([as_source(synthetic_sweep("model-a", n_random=0))], n_bootstrap=2)
    assert found.tables["specificity"][["p", "z", "p_bh", "beyond_mean"]].isna().all(axis=None)
    assert set(found.tables["specificity"]["reason"]) == {"no random directions"}
    assert (found.tables["recommendations"]["reason"] == "untested").all()
    assert any(note.code == "no_random" for note in found.notes)


def test_emotions_without_a_label_have_effects_but_no_recommendation() -> None:
    """Guards against a crash for a user's own emotion names."""
    found = compare_sweeps([as_source(synthetic_sweep("model-a", emotions=("pirate",)))], n_bootstrap=2)
    assert found.tables["recommendations"]["reason"].tolist() == ["no_target"]
    assert len(found.tables["effect_sizes"]) and found.tables["selectivity"].empty and found.tables["tradeoff"].empty


def test_power_is_that_of_the_design() -> None:
    """Guards against power from the observed effect alone, and the seed's columns missing."""
    table = comparison().tables["power_requirements"]
    plain = table[(table["model"] == "model-a") & (table["correction"] == "none")].set_index("target_effect_size")
    assert plain["required_n_effective"].to_dict() == {0.2: 199, 0.3: 90, 0.5: 34} and (plain["n"] == 12).all()
    family = table[table["correction"] == "bonferroni"]
    own = comparison().tables["effect_sizes"].query("own")
    assert (family["alpha"] == 0.05 / len(own)).all() and (family["tests"] == len(own)).all()
    per_test = comparison().tables["power_analysis"]
    seed = (
        "profile phase model_name emotion layer head head_spec alpha comparison metric_name paired n_baseline n_patched n_effective mean_baseline"
        " mean_patched std_baseline std_patched mean_diff cohen_d ci_lower ci_upper effect_size_ci_lower effect_size_ci_upper t_statistic p_value"
    )
    assert per_test.columns[:26].tolist() == seed.split() and "power" in per_test
    assert per_test["power_d05"].nunique() == 2  # own labels and other scores are families of their own


def test_too_few_prompts_have_no_power_and_no_intervals() -> None:
    """Guards against a power of the t test at a level that the sign flips of so few prompts cannot reach: 5 have p = 1/16 at least."""
    found = compare_sweeps([as_source(synthetic_sweep("model-a", n_prompts=5))], n_bootstrap=2)
    table = found.tables["power_requirements"]
    assert (table["power"] == 0).all() and table["smallest_detectable_d"].isna().all()
    assert (table["required_n_effective"] >= 6).all()
    effects = found.tables["effect_sizes"]
    assert effects[["diff_low", "diff_high", "d_low", "d_high"]].isna().all(axis=None) and effects["p_permutation"].min() == 1 / 16
    notes = {note.code: note.values for note in found.notes}
    assert notes["no_intervals"] == {"label": "model-a", "n": 5, "least": 6}
    assert (notes["few_flips"]["smallest_p"], notes["few_flips"]["needed"]) == (1 / 16, 11)  # 36 tests: 2^-10 < 0.05 / 36
    assert set(found.tables["recommendations"]["reason"]) == {"not_shown"}


def test_k_selection_takes_the_smallest_k_beyond_which_overlap_does_not_grow() -> None:
    """Guards against calling overlap what random subspaces of that dimension have too, and against the largest of equals."""
    rng = np.random.default_rng(0)
    grown = {1: 0.05, 2: 0.3, 3: 0.31, 4: 0.29, 5: 0.2}
    rows = [
        {"model_a": "a", "model_b": "b", "emotion": "anger", "k": k, "layer_a": i, "layer_b": j, "null_mean": k / 64, "null_q95": k / 64 + 0.02,
         "overlap": k / 64 + grown.get(k, 0.0) + rng.normal(0, 0.02)}
        for k in range(1, 9) for i in range(6) for j in range(5)
    ]  # fmt: skip
    table = k_selection(pd.DataFrame(rows)).set_index("k")
    assert table.index[table["chosen"]].tolist() == [2] and table["n"].tolist() == [30] * 8
    assert table.loc[8, "low"] < 0 < table.loc[8, "high"] and table.loc[2, "share_above_null"] == 1
    single = pd.DataFrame(rows)
    alone = k_selection(single[(single["layer_a"] == 0) & (single["layer_b"] == 0)])
    assert not alone["chosen"].any() and alone["low"].isna().all() and alone["excess"].notna().all()
    with pytest.raises(UserError, match="'overlap'"):
        k_selection(single.drop(columns="overlap"))


def refused(change: str) -> list[Source]:
    """Sweeps that cannot be compared."""
    first, second = sources()
    if change == "none":
        return []
    if change == "twice":
        return [first, first]
    if change == "one prompt":
        return [as_source(synthetic_sweep("model-a", n_prompts=1))]
    if change == "only a baseline":
        return [replace(first, conditions=first.conditions[first.conditions["kind"] == "baseline"])]
    if change == "scorers":
        return [first, replace(second, facts={**second.facts, "scorer_fingerprints": {"hub": "7" * 16}})]
    if change == "score_prompt":
        return [first, replace(second, config={**second.config, "score_prompt": True})]
    prompts = second.prompts.assign(prompt_id=[f"other{i}" for i in range(len(second.prompts))])
    return [first, replace(second, prompts=prompts)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("none", "no sweep to compare"),
        ("twice", "given 2 times"),
        ("one prompt", "has 1 prompt.*at least 2"),
        ("only a baseline", "no condition with a direction"),
        ("scorers", "different scorers, embedded .* and hub"),
        ("score_prompt", "score_prompt"),
        ("prompts", "share no prompts"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(change: str, words: str) -> None:
    """Guards against a comparison of numbers that do not measure the same."""
    with pytest.raises(UserError, match=words) as caught:
        compare_sweeps(refused(change), n_bootstrap=2)
    assert "\n" not in str(caught.value)


def test_an_unknown_family_is_refused() -> None:
    """Guards against a misspelt family that silently becomes the whole comparison."""
    with pytest.raises(UserError, match="'metrics' is not one of"):
        compare_sweeps(sources(), family="metrics")

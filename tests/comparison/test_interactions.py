"""Two directions at once: the interaction is what it is by hand, prompt by prompt, and only of designs that have all four cells."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
from synthetic import as_source, synthetic_sweep

from emo_mlflow.comparison import compare_sweeps
from emo_mlflow.comparison.interactions import interactions
from emo_mlflow.comparison.responses import responses
from emo_mlflow.sweeping.results import condition_of


def with_combination(shares: tuple[float, float], bonus: float):
    """A sweep to which a combination of gratitude and anger at layer 2 is added that does the sum, and `bonus` to gratitude's label."""
    source = as_source(synthetic_sweep("model-a", alphas=(1.0, 2.0), n_prompts=24, n_random=0))
    table = source.conditions
    at = table[(table["kind"] == "emotion") & (table["layer"] == 2)].set_index(["emotion", "alpha"])["condition_id"]
    alone = [at["gratitude", 2.0 * shares[0]], at["anger", 2.0 * shares[1]]]
    baseline = table.loc[table["kind"] == "baseline", "condition_id"].iloc[0]
    pattern = table[table["condition_id"] == at["gratitude", 2.0]].iloc[0]
    edits = f"gratitude@2*{shares[0]:g};anger@2*{shares[1]:g}"
    condition = replace(condition_of(pattern.to_dict()), emotion="both", edits=edits)
    row = pattern.to_dict() | asdict(condition) | {"condition_id": condition.condition_id}
    scores = source.scores.set_index(["prompt_id", "sample"])
    metrics = [name for name in scores.columns if name != "condition_id"]
    by_id = {name: scores[scores["condition_id"] == name][metrics] for name in (baseline, *alone)}
    added = by_id[alone[0]] + by_id[alone[1]] - by_id[baseline]
    rng = np.random.default_rng(0)
    added["goemotions.gratitude"] += (bonus + 0.05 * rng.normal(size=len(added))).astype(np.float32)
    more = added.reset_index().assign(condition_id=condition.condition_id)
    texts = source.completions[source.completions["condition_id"] == alone[0]].assign(condition_id=condition.condition_id)
    return replace(
        source,
        conditions=pd.concat([table, pd.DataFrame([row])[list(table.columns)]], ignore_index=True),
        scores=pd.concat([source.scores, more[list(source.scores.columns)]], ignore_index=True),
        completions=pd.concat([source.completions, texts], ignore_index=True),
    )


@pytest.mark.parametrize("shares", [(1.0, 1.0), (1.0, 0.5)])
def test_an_interaction_is_what_is_more_than_the_sum(shares):
    source = with_combination(shares, bonus=0.4)
    table = compare_sweeps([source], n_bootstrap=400).tables["interactions"].set_index("metric")
    found = table.loc["goemotions.gratitude"]
    assert (found["first"], found["second"], found["layer"], found["n"]) == ("gratitude", "anger", 2, 24)
    assert found["low"] < 0.4 < found["high"] and found["high"] - found["low"] < 0.1 and found["p_holm"] < 0.01
    assert found["interaction"] == pytest.approx(found["effect_both"] - found["effect_first"] - found["effect_second"], abs=1e-5)
    others = table.drop("goemotions.gratitude").loc[[name for name in table.index if name.startswith("goemotions") and "gratitude" not in name]]
    np.testing.assert_allclose(others["interaction"], 0, atol=1e-5)


def test_without_all_four_cells_there_is_none():
    """A part at another strength, a sweep of single directions, or budgets of damage, under which each has another dose than in both."""
    source = with_combination((1.0, 1.0), bonus=0.4)
    budgets = replace(source, conditions=source.conditions.assign(alpha_unit="kl"))
    assert len(interactions([responses(source)], ("comparison",), 50, 0)) and not len(interactions([responses(budgets)], ("comparison",), 50, 0))
    data = responses(as_source(synthetic_sweep("model-a", n_prompts=8, n_random=0)))
    assert not len(interactions([data], ("comparison",), 50, 0))
    source = with_combination((1.0, 0.5), bonus=0.4)
    gone = source.conditions.query("not (emotion == 'anger' and alpha == 1.0)")
    kept = set(gone["condition_id"])
    parts = {name: getattr(source, name)[getattr(source, name)["condition_id"].isin(kept)] for name in ("scores", "completions")}
    assert not len(interactions([responses(replace(source, conditions=gone.reset_index(drop=True), **parts))], ("comparison",), 50, 0))

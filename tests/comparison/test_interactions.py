"""Two directions at once: the interaction is what it is by hand, prompt by prompt, and only of designs that have all four cells."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from synthetic import as_source, synthetic_sweep, with_combination

from emo_mlflow.comparison import compare_sweeps
from emo_mlflow.comparison.interactions import interactions
from emo_mlflow.comparison.responses import responses


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

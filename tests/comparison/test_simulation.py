"""The whole path from a sweep's tables to the report's words, where it is known that there is nothing to find, or how much."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy import stats
from simulated import simulated_sweep

from emo_mlflow.comparison import Source, compare_sweeps
from emo_mlflow.report.comparison_answer import answer
from emo_mlflow.report.texts import texts

SIZES = [(n, draws, spread) for n in (6, 8, 30, 225) for draws in (3, 19, 50) for spread in (0.15, 0.4, 0.8)]


def called_specific(source: Source, family: str = "comparison") -> set[str]:
    """The emotions that the report calls specific, in its own words; in both languages."""
    comparison = compare_sweeps([source], family, n_bootstrap=2)
    english = re.match(r"Specific to the direction in \d+ of \d+ cases [^:]*: ([^.]*)", answer(comparison, texts("en"))[0])
    japanese = re.match(r"\d+通り.*?のうち\d+通りで、効果は方向に特異的である: ([^。]*)", answer(comparison, texts("ja"))[0])
    names = [set(re.findall(r"e\d+", found[1])) if found else set() for found in (english, japanese)]
    assert names[0] == names[1]
    return names[0]


def most_by_chance(n: int, rate: float = 0.05) -> int:
    """What a binomial count of n at a rate exceeds once in 10,000 times."""
    return int(stats.binom.isf(1e-4, n, rate))


@pytest.mark.parametrize(("n", "draws", "spread"), [(6, 19, 0.4), (8, 50, 0.8), (30, 19, 0.15), (30, 3, 0.4)])
def test_null_emotions_are_not_called_specific(n: int, draws: int, spread: float) -> None:
    """Guards against a headline that calls 16 of 18 random directions specific: the best of their conditions rose, the baseline test was
    significant, and three draws did less. Each emotion is a study of its own here (family=emotion)."""
    source = simulated_sweep(np.random.default_rng([n, draws]), n_prompts=n, n_draws=draws, spread=spread, n_emotions=12)
    assert len(called_specific(source, "emotion")) <= (0 if draws < 19 else most_by_chance(12))


def test_an_effect_is_called_specific() -> None:
    """Guards against a test that never errs because it never finds: 19 draws are enough for one emotion, 59 for three, and no less."""
    for draws, emotions, found in ((19, 1, 1), (59, 3, 3), (58, 3, 0)):
        shape = {"n_prompts": 30, "n_draws": draws, "spread": 0.2, "n_emotions": emotions, "n_real": emotions}
        assert len(called_specific(simulated_sweep(np.random.default_rng(1), effect=2.0, **shape))) == found


@pytest.mark.slow
def test_null_emotions_are_called_specific_at_most_as_often_as_said() -> None:
    """At most 5% of null emotions, over prompts, draws and spreads of draws, whether an emotion's own deviation is the same in all cells
    or another in each; by size within chance of 5%, and all together within chance of it."""
    studies, errors = 0, 0
    for i, (n, draws, spread) in enumerate(SIZES):
        found, tested = 0, 0
        for together in (0.0, 1.0) if draws >= 19 else (0.0,):
            rng = np.random.default_rng([i, int(together)])
            shape = {"n_prompts": n, "n_draws": draws, "spread": spread, "together": together}
            for emotions in (12,) if n < 225 else (6, 6):  # as many, in memory for six
                found += len(called_specific(simulated_sweep(rng, n_emotions=emotions, **shape), "emotion"))
                tested += emotions
        assert found <= (most_by_chance(tested) if draws >= 19 else 0), (n, draws, spread)
        studies, errors = studies + tested * (draws >= 19), errors + found
    assert errors <= most_by_chance(studies)


@pytest.mark.slow
@pytest.mark.parametrize("effect", [0.0, 2.5])
def test_a_study_of_three_emotions_calls_a_null_one_specific_in_at_most_5_percent(effect: float) -> None:
    """The same of whole studies as they are run: 59 draws, three emotions, Holm over them. One may have an effect, which must not lend
    its significance to the others."""
    rng = np.random.default_rng(0)
    shape = {"n_prompts": 8, "n_draws": 59, "spread": 0.3, "effect": effect}
    found = [called_specific(simulated_sweep(rng, **shape)) for _ in range(60)]
    assert sum(bool(names - {"e0"}) if effect else bool(names) for names in found) <= most_by_chance(60)
    assert not effect or sum("e0" in names for names in found) >= 50

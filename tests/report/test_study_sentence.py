"""A study's sentence claims what a test supports: more than random directions, a rise against the baseline, or both."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from emo_mlflow.report.study import sentence
from emo_mlflow.statistics.margins import Interval, Share
from emo_mlflow.studying.protocol import Place
from emo_mlflow.studying.verdicts import Answer

PLACE = Place("gratitude", "goemotions.gratitude", (14,), 0.3, "kl", 0.9, "the middle one")


def answer(verdict, low, p_baseline):
    return Answer(
        emotion="gratitude", metric="goemotions.gratitude", verdict=verdict, effect=Interval(18, 0.05, low, 0.21), baseline=0.03, patched=0.08,
        p_baseline=p_baseline, p_baseline_holm=p_baseline, p=0.017, draws=59, harmed=Share(2, 18, 0.11, 0.01, 0.35),
        broken=0.1, broken_baseline=0.1, place=PLACE,
    )  # fmt: skip


@pytest.mark.parametrize(("low", "p_baseline", "rises"), [(0.01, 0.01, True), (-0.12, 0.01, False), (0.01, 0.2, False), (np.nan, 0.01, False)])
def test_a_rise_is_claimed_where_it_is_shown(low, p_baseline, rises):
    """Guards: "steers" of a direction whose interval reaches below 0, because random directions lower the label."""
    said = sentence(SimpleNamespace(void=lambda emotion: []), answer("specific", low, p_baseline))
    assert ("steers, and specifically so" in said) is rises
    assert ("more than random directions" in said and "against the baseline is not shown" in said) is not rises

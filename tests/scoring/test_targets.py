"""An emotion's own label, and its own settings, whatever the case of its name."""

from __future__ import annotations

import pytest

from emo_mlflow.errors import UserError
from emo_mlflow.scoring.targets import target_metric
from emo_mlflow.settings.study import check_emotions, value_of


def test_an_emotions_label_is_found_in_any_case():
    """Guards: a data set that writes `Joy` and `Apology`, whose own labels are then nobody's."""
    metrics = {"goemotions.joy", "goemotions.remorse", "sentiment.positive"}
    assert target_metric("Joy", metrics) == "goemotions.joy" and target_metric("APOLOGY", metrics) == "goemotions.remorse"
    assert target_metric("Positive", metrics) is None


def test_an_emotions_value_is_found_in_any_case():
    """Guards: `layers=joy:3` refused for a data set that writes `Joy`."""
    check_emotions({"joy": 3.0}, ("Joy", "Fear"), "layers")
    assert value_of({"joy": 3.0, "": 1.0}, "Joy", "layers") == 3.0 and value_of({"joy": 3.0, "": 1.0}, "Fear", "layers") == 1.0
    with pytest.raises(UserError, match="awe"):
        check_emotions({"awe": 3.0}, ("Joy",), "layers")

"""Ids that sweeps of earlier versions have: they join sweeps, and a sweep that was begun earlier goes on by them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from emo_mlflow.settings.sweep import make_config, make_head_config, work_hash
from emo_mlflow.types import Condition

IDS = {
    "8feb20419daf": {"kind": "baseline"},
    "8942a601aa4b": {"emotion": "gratitude", "layer": 12, "alpha": 1.0, "scope": "window", "patch_window": 3},
    "0ac651381cee": {"emotion": "gratitude", "layer": 12, "alpha": 2.0, "scope": "generated"},
    "a5a9eb7649dc": {"kind": "random", "emotion": "anger", "layer": 0, "alpha": -0.5, "draw": 4, "seed": 7, "scope": "all"},
    "0381d5451633": {
        "emotion": "joie de vivre", "layer": 3, "alpha": 6.0, "scope": "generated", "site": "resid_post", "operation": "clamp",
        "alpha_unit": "residual", "alpha_schedule": "exponential:5",
    },
    "d41b3ec146bb": {"emotion": "anger", "layer": 5, "alpha": 1.0, "scope": "all", "operation": "restore", "head": 7},
    "abee1482a072": {
        "kind": "random", "emotion": "anger", "layer": 2, "alpha": 1.0, "draw": 0, "seed": 0, "patch_window": 1, "operation": "zero", "head": 0,
    },
}  # fmt: skip


@pytest.mark.parametrize("condition_id", IDS)
def test_a_conditions_id_is_what_it_was(condition_id):
    """Written down from version 0.1.0."""
    assert Condition(**{"kind": "emotion", **IDS[condition_id]}).condition_id == condition_id


@dataclass(frozen=True)
class Grown(Condition):
    """A condition as a later version may have it."""

    template: str = "plain"


@pytest.mark.parametrize("condition_id", IDS)
def test_a_new_field_at_its_default_changes_no_id(condition_id):
    """Guards: sweeps of two versions that share no condition, and a sweep that is done twice after an update."""
    given = {"kind": "emotion", **IDS[condition_id]}
    assert Grown(**given).condition_id == condition_id
    others = {Grown(**given, template=name).condition_id for name in ("chat", "letter")} - {condition_id}
    assert len(others) == (2 if given["kind"] != "baseline" else 0)


@pytest.mark.parametrize(
    ("settings", "emotions", "n_layers", "work"),
    [
        (make_config("smoke"), ("gratitude", "anger"), 12, "6b6b8a9690a0fb17"),
        (make_config("baseline", {"alphas": "1,2", "scope": "all", "device": "cuda"}), ("joy",), 4, "f3f43b280ae553cd"),
        (make_head_config("seed", {"operation": "restore"}), ("anger",), 12, "cf0b93c5e96cd47e"),
    ],
)
def test_what_a_sweep_computes_is_known_by_what_it_was(settings, emotions, n_layers, work):
    """Written down from version 0.1.0: an unfinished sweep is gone on with by this."""
    assert work_hash(settings.resolved(emotions, n_layers)) == work

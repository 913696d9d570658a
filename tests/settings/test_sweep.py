"""Every parameter is checked before anything is loaded, and the message names it, its value and what it may be."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emo_mlflow.errors import UserError
from emo_mlflow.settings.layers import resolve_layers
from emo_mlflow.settings.profiles import PROFILES
from emo_mlflow.settings.sweep import make_config, work_hash
from emo_mlflow.settings.tables import PARAMETERS


def test_profiles_hold_what_they_promise():
    smoke, seed, full = (make_config(name) for name in ("smoke", "seed", "baseline"))
    assert (smoke.max_samples, smoke.layers, smoke.alphas, smoke.scope) == (6, "all/6", (1.0, 2.0), "generated")
    assert (smoke.num_random, smoke.sequence_length, smoke.min_new_tokens) == (3, 20, 20)
    assert (seed.max_samples, seed.layers, seed.alphas, seed.scope, seed.patch_window) == (
        8,
        "all",
        (1.0,),
        "window",
        (3,),
    )
    assert (seed.sequence_length, seed.num_random) == (30, 0)
    assert (full.max_samples, full.num_random, full.sequence_length, full.patch_window) == (225, 50, 30, (3,))


def test_single_parameters_override_and_empty_ones_do_not():
    """MLproject passes every parameter on: an empty one leaves the profile's value."""
    config = make_config("smoke", {"alphas": "-2, -1,0.5", "layers": "", "num_random": None, "patch_window": "1,3,5"})
    assert config.alphas == (-2.0, -1.0, 0.5)
    assert config.layers == "all/6" and config.num_random == 3 and config.patch_window == (1, 3, 5)
    assert make_config("smoke", {"min_new_tokens": "0"}).min_new_tokens == 0
    assert make_config("smoke", {"sequence_length": "7"}).min_new_tokens == 7


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("alphas", "one"), ("alphas", "1,,2"), ("alphas", "nan"), ("alphas", "inf"), ("layers", "first"), ("layers", "1-2-3"),
        ("max_samples", "0"), ("max_samples", "2.5"), ("num_random", "-1"), ("sequence_length", "0"), ("patch_window", "0"),
        ("temperature", "-1"), ("scope", "some"), ("operation", "mul"), ("site", "mid"), ("alpha_unit", "norm"), ("alpha_schedule", "cubic"),
        ("prepend_bos", "maybe"), ("dtype", "int8"), ("batch_size", "0"), ("child_runs", "some"), ("engine", "spark"), ("min_new_tokens", "31"),
        ("samples_per_prompt", "3"), ("seed", "-1"),
    ],
)  # fmt: skip
def test_bad_values_are_named(name, text):
    with pytest.raises(UserError) as caught:
        make_config("seed", {name: text})
    message = str(caught.value)
    assert name in message and "\n" not in message
    assert text in message or name == "samples_per_prompt"


def test_unknown_names_list_the_known_ones():
    with pytest.raises(UserError, match="smoke, seed, baseline"):
        make_config("tiny")
    with pytest.raises(UserError, match="alphas"):
        make_config("smoke", {"alpha": "1"})


def test_layers():
    assert resolve_layers("all", 3) == (0, 1, 2)
    assert resolve_layers("all/6", 30) == (0, 6, 12, 18, 24)
    assert resolve_layers("0,3,6", 12) == (0, 3, 6)
    assert resolve_layers("2-4,0", 12) == (0, 2, 3, 4)
    assert resolve_layers("0-11/5", 12) == (0, 5, 10)
    with pytest.raises(UserError, match="layers 0 to 11"):
        resolve_layers("0-12", 12)
    with pytest.raises(UserError, match="no layer"):
        resolve_layers("5-2", 12)


def test_the_hash_is_of_the_work_and_not_of_how_it_is_done():
    """A sweep resumed on another device or with another batch size is the same sweep; with another alpha it is not."""
    base = make_config("smoke")
    assert work_hash(base) == work_hash(
        make_config("smoke", {"device": "cuda", "batch_size": "7", "child_runs": "none"})
    )
    assert work_hash(base) != work_hash(make_config("smoke", {"alphas": "1.5"}))


@given(st.sampled_from(list(PARAMETERS)), st.text(max_size=12))
def test_no_text_is_a_traceback(name, text):
    """Random values are either taken or refused with a message of one line."""
    try:
        make_config("smoke", {name: text})
    except UserError as error:
        assert name in str(error) and not re.search(r"[\r\n]", str(error).replace(repr(text.strip()), ""))


def test_what_sets_two_sweeps_apart_has_an_order():
    """Two sweeps of one model are named by the first two settings in which they differ: two with one rank would take turns."""
    ranks = [item.apart for item in PARAMETERS.values() if item.apart]
    assert sorted(ranks) == list(range(1, len(ranks) + 1))
    assert not [name for name, item in PARAMETERS.items() if item.how and (item.apart or item.of_child)], "these do not decide a text"


def test_every_profile_overrides_known_parameters():
    assert all(set(values) <= set(PARAMETERS) for values in PROFILES.values())

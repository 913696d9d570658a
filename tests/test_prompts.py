"""The built-in prompts are what they claim to be, and a user's file is read or refused with the reason."""

from __future__ import annotations

import itertools
import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from emo_mlflow.errors import UserError
from emo_mlflow.prompts import fit_hash, load_prompts, normalised

EMOTIONS = ("gratitude", "anger", "apology")


@pytest.fixture(scope="module")
def builtin():
    return load_prompts(max_samples=1000)


def test_built_in_counts(builtin):
    assert builtin.emotions == EMOTIONS and builtin.reference == "neutral" and builtin.n_duplicates == 0
    assert Counter(prompt.emotion for prompt in builtin.fit) == dict.fromkeys((*EMOTIONS, "neutral"), 225)
    assert len(builtin.test) == 225 and {prompt.emotion for prompt in builtin.test} == {"neutral"}


def test_built_in_texts_are_distinct(builtin):
    """The first system counted 70 distinct prompts as 225, and fitted on prompts that it tested on."""
    sets = [frozenset(normalised(prompt.text).split()) for prompt in (*builtin.fit, *builtin.test)]
    assert len({normalised(prompt.text) for prompt in (*builtin.fit, *builtin.test)}) == 1125
    largest = max(len(a & b) / len(a | b) for a, b in itertools.combinations(sets, 2))
    assert largest < 0.8


def test_built_in_lengths_match_between_emotions(builtin):
    """A direction between texts of different length would be a direction of length."""
    means = [
        np.mean([len(prompt.text.split()) for prompt in builtin.fit if prompt.emotion == name])
        for name in (*EMOTIONS, "neutral")
    ]
    assert max(means) / min(means) < 1.1


@pytest.mark.slow
def test_built_in_texts_express_their_emotion(builtin):
    """By the embedded scorer: the emotion's own labels lead in at least 90% of the texts."""
    from emo_mlflow.scorers import score

    own = {
        "gratitude": {"gratitude"},
        "anger": {"anger", "annoyance", "disappointment", "disapproval"},
        "apology": {"remorse"},
        "neutral": {"neutral"},
    }
    table = score([prompt.text for prompt in builtin.fit]).filter(like="goemotions.")
    leading = [name.removeprefix("goemotions.") for name in table.idxmax(axis=1)]
    for emotion, labels in own.items():
        hits = [
            label in labels for label, prompt in zip(leading, builtin.fit, strict=True) if prompt.emotion == emotion
        ]
        assert np.mean(hits) >= 0.9, emotion


def test_fewer_samples_are_a_part_of_more():
    """So that a larger sweep extends a smaller one."""
    few, many = (load_prompts(max_samples=n, seed=3).test for n in (5, 50))
    assert many[:5] == few and load_prompts(max_samples=5, seed=4).test != few


def test_choosing_emotions_leaves_the_others_out():
    chosen = load_prompts(emotions=["anger"], max_samples=3)
    assert chosen.emotions == ("anger",) and {prompt.emotion for prompt in chosen.fit} == {"anger", "neutral"}


def rows(n=6, emotions=("joy", "neutral"), **extra):
    return [
        {"text": f"{emotion} text number {i}", "emotion": emotion, **extra} for emotion in emotions for i in range(n)
    ]


def write(path, table):
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in table), encoding="utf-8")
    elif path.suffix == ".csv":
        pd.DataFrame(table).to_csv(path, index=False)
    else:
        pd.DataFrame(table).to_parquet(path)
    return str(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_a_users_file_is_split_in_half(tmp_path, suffix):
    found = load_prompts(write(tmp_path / f"mine{suffix}", rows()), max_samples=100)
    assert found.emotions == ("joy",) and found.reference == "neutral" and "half" in found.split
    assert Counter(prompt.emotion for prompt in found.fit) == {"joy": 3, "neutral": 3}
    assert len(found.test) == 3
    assert not {normalised(p.text) for p in found.fit} & {normalised(p.text) for p in found.test}


def test_without_neutral_the_others_are_the_reference(tmp_path):
    found = load_prompts(write(tmp_path / "mine.jsonl", rows(emotions=("joy", "fear", "awe"))), max_samples=100)
    assert found.reference is None and found.emotions == ("joy", "fear", "awe") and len(found.test) == 9
    only = load_prompts(str(tmp_path / "mine.jsonl"), emotions=["joy"], max_samples=100)
    assert {prompt.emotion for prompt in only.fit} == {"joy", "fear", "awe"}


def test_duplicates_are_dropped_and_counted(tmp_path):
    """A text that repeats, in another case, punctuation, role or under another emotion, counts once, and for fitting first."""
    table = [*rows(role="fit"), *({"text": f"Open {i}", "emotion": "neutral", "role": "test"} for i in range(3))]
    table.append({"text": "JOY text, number 0!", "emotion": "neutral", "role": "test"})
    with pytest.warns(UserWarning, match="1 of 16"):
        found = load_prompts(write(tmp_path / "mine.jsonl", table), max_samples=100)
    assert found.n_duplicates == 1 and len(found.test) == 3


def test_the_hash_is_of_the_texts_in_any_order(builtin):
    assert fit_hash(builtin.fit) == fit_hash(builtin.fit[::-1]) != fit_hash(builtin.fit[1:])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([], "no column"),
        (rows(emotions=("joy",)), "one emotion only"),
        ([*rows(), {"text": "  ", "emotion": "joy"}], "row 13.*empty"),
        ([*rows(), {"text": 5, "emotion": "joy"}], "row 13.*not a string"),
        ([*rows(), {"text": "x", "emotion": ""}], "row 13.*emotion"),
        ([*rows(), {"text": "x", "emotion": "../../etc"}], "row 13.*emotion"),
        ([*rows(), {"text": "x", "emotion": "joy", "role": "train"}], "row 13.*train"),
        ([*rows(), {"text": "x", "emotion": "joy", "role": "test"}], "some texts only"),
        (rows(role="fit"), "no neutral texts to test on"),
        ([*rows(n=1, role="fit"), {"text": "Open", "emotion": "neutral", "role": "test"}], "at least 2"),
        ([{"text": "x"}], "emotion"),
    ],
)
def test_bad_files_are_refused_with_the_reason(tmp_path, table, message):
    with pytest.raises(UserError, match=message) as caught:
        load_prompts(write(tmp_path / "mine.jsonl", table), max_samples=10)
    assert "\n" not in str(caught.value)


def test_unreadable_files(tmp_path):
    (tmp_path / "latin.csv").write_bytes("text,emotion\ncaf\xe9,joy\n".encode("latin-1"))
    (tmp_path / "broken.jsonl").write_text('{"text": "a", "emotion": "joy"}\n{"text": \n')
    (tmp_path / "list.jsonl").write_text("[1, 2]\n")
    (tmp_path / "fake.parquet").write_bytes(b"not parquet")
    for name, message in [
        ("latin.csv", "UTF-8"), ("broken.jsonl", "line 2"), ("list.jsonl", "line 1"), ("fake.parquet", "parquet"),
        ("absent.csv", "does not exist"), ("notes.txt", "ends in"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=message) as caught:
            load_prompts(str(tmp_path / name), max_samples=5)
        assert "\n" not in str(caught.value)


def test_unknown_emotions_list_the_known_ones():
    with pytest.raises(UserError, match="gratitude, anger, apology"):
        load_prompts(emotions=["joy"], max_samples=5)
    with pytest.raises(UserError, match="neutral is what"):
        load_prompts(emotions=["neutral"], max_samples=5)
    with pytest.raises(UserError, match="max_samples=0"):
        load_prompts(max_samples=0)

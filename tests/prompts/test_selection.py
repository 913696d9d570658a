"""The built-in prompts are what they claim to be, and a user's file is read or refused with the reason."""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
import warnings
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from emo_mlflow.errors import UserError
from emo_mlflow.prompts.repeats import exclaimed, normalised
from emo_mlflow.prompts.selection import fit_hash, load_prompts

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
    """By the embedded scorer, at its card's thresholds: at least 90% of the texts have a label of their own emotion; it leads in 88%."""
    from emo_mlflow.scoring.loading import load_scorers

    own = {
        "gratitude": {"gratitude"},
        "anger": {"anger", "annoyance", "disappointment", "disapproval"},
        "apology": {"remorse"},
        "neutral": {"neutral"},
    }
    scorers = load_scorers(("embedded",))
    (head,) = [head for head in scorers.members[0].card.heads if head.name == "goemotions"]
    columns = [scorers.metrics.index(f"goemotions.{label}") for label in head.labels]
    probabilities = scorers.score([prompt.text for prompt in builtin.fit])[:, columns]
    leading = probabilities.argmax(axis=1)
    for emotion, labels in own.items():
        rows = [prompt.emotion == emotion for prompt in builtin.fit]
        own_columns = np.flatnonzero([label in labels for label in head.labels])
        found = probabilities[rows][:, own_columns] >= np.array(head.thresholds)[own_columns]
        assert found.any(axis=1).mean() >= 0.9, emotion
        assert np.isin(leading[rows], own_columns).mean() >= 0.88, emotion


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


def test_texts_are_kept_as_they_are(tmp_path):
    """Guards: a rendered chat prompt without its last line end, after which the model answers something else."""
    texts = ["<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n", "  two spaces, and one behind ", "\ta tab"]
    table = [{"text": text, "emotion": "neutral", "role": "test"} for text in texts] + rows(role="fit")
    for suffix in (".jsonl", ".csv", ".parquet"):
        found = load_prompts(write(tmp_path / f"mine{suffix}", table), max_samples=100)
        assert {prompt.text for prompt in found.test} == set(texts), suffix
    again = [*table, {"text": texts[1].strip() + "!", "emotion": "neutral", "role": "test"}]
    with pytest.warns(UserWarning, match="1 repeat others"):
        found = load_prompts(write(tmp_path / "again.jsonl", again), max_samples=100)
    assert {prompt.text for prompt in found.test} == set(texts), "what is compared to find repeats is a copy"


def test_names_of_emotions_are_compared_without_case(tmp_path):
    """Guards: `Neutral` injected as an emotion, and `joy` and `Joy` as two."""
    table = rows(emotions=("Joy", "NEUTRAL", "Anger")) + [{**row, "text": row["text"] + " more"} for row in rows(emotions=("joy", "Neutral"))]
    path = write(tmp_path / "mine.jsonl", table)
    with pytest.warns(UserWarning, match="Joy, joy are one emotion, Joy"):
        found = load_prompts(path, emotions=["JOY"], max_samples=100)
    assert (found.emotions, found.reference) == (("Joy",), "neutral")
    assert Counter(prompt.emotion for prompt in found.fit) == {"Joy": 6, "neutral": 6} and len(found.test) == 6
    assert found.compared_with == "neutral (written NEUTRAL, Neutral), 6 texts"
    with pytest.warns(UserWarning), pytest.raises(UserError, match="Neutral.*measured against|neutral is what"):
        load_prompts(path, emotions=["Neutral"], max_samples=100)


def test_accents_are_one_however_they_are_stored(tmp_path):
    """Guards: an emotion that a Mac's file name or keyboard wrote as letter and accent, and that nobody can then choose."""
    stored = [unicodedata.normalize(form, "gêne") for form in ("NFC", "NFD")]
    table = rows(emotions=(stored[0], "neutral")) + [{**row, "text": row["text"] + " more"} for row in rows(emotions=(stored[1],))]
    found = load_prompts(write(tmp_path / "mine.jsonl", table), emotions=[stored[1]], max_samples=100)
    assert found.emotions == (stored[0],) and Counter(prompt.emotion for prompt in found.fit) == {stored[0]: 6, "neutral": 3}


def test_no_reference_is_said_aloud(tmp_path):
    """Guards: a set without neutral texts, whose directions mean something else, and nothing on the screen."""
    path = write(tmp_path / "mine.jsonl", rows(emotions=("joy", "fear", "awe")))
    with pytest.warns(UserWarning, match="no texts of the emotion 'neutral'"):
        found = load_prompts(path, max_samples=100)
    assert found.compared_with.startswith("NONE: each emotion is compared with all others together")


def test_repeats_count_once(tmp_path):
    """The first system had 225 prompts of which 70 were distinct, and counted 225."""
    table = [
        {"text": f"{word} {i % 70}{'!' * (i // 70)}", "emotion": emotion}
        for emotion, word in (("joy", "Yes"), ("neutral", "Day"))
        for i in range(225)
    ]
    with pytest.warns(UserWarning, match="310 of 450 .* 310 repeat others, 0 stand .*differ in case, spacing or punctuation only"):
        found = load_prompts(write(tmp_path / "mine.jsonl", table), max_samples=1000)
    assert found.n_duplicates == 310 and len(found.test) == 35
    assert Counter(prompt.emotion for prompt in found.fit) == {"joy": 35, "neutral": 35}


@pytest.mark.parametrize("order", [1, -1])
def test_no_text_is_tested_on_that_was_fitted_on(tmp_path, order):
    """The first system tested on what it had fitted on; which of the two rows comes first must not matter."""
    openings = [{"text": f"Open {i}", "emotion": "neutral", "role": "test"} for i in range(3)]
    table = [*rows(role="fit"), *openings, {"text": "NEUTRAL text, number 0!", "emotion": "neutral", "role": "test"}]
    with pytest.warns(UserWarning, match="1 of 16 .* 1 repeat others"):
        found = load_prompts(write(tmp_path / "mine.jsonl", table[::order]), max_samples=100)
    assert (
        found.n_duplicates == 1
        and len(found.fit) == 12
        and {p.text for p in found.test} == {"Open 0", "Open 1", "Open 2"}
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Great service 😊", "Great service 😡"), ("Great service!", "Great service?"), ("Really?", "Really"),
        ("Great service :)", "Great service :("), ("Thanks <3", "Thanks </3"), ("👍🏻", "👍🏿"), ("+1", "-1"), ("कि", "की"), ("สุข", "สข"),
        ("café", "cafe"), ("١", "٢"), ("آیا؟", "آیا"), ("Nice 😊😊", "Nice 😊"),
    ],
)  # fmt: skip
def test_what_carries_a_feeling_makes_two_texts(first, second):
    """Guards: texts that differ in an emoji, a face, a ? or a vowel sign taken for repeats, and all of them dropped."""
    assert normalised(first) != normalised(second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Thank you!!", "thank  you"), ("It's  fine, really.", "it’s fine — really"), ("What?!", "WHAT ???"), ("Stop", "Stop\u00ad…"),
        ("cafe\u0301", "CAFÉ"), ("❤️ you", "❤ you"), ("नमस्ते।", "नमस्ते"), ("ｇｏｏｄ？", "good?"), ("می\u200cروم", "میروم"), ("!!!", "!"),
    ],
)  # fmt: skip
def test_case_spacing_and_punctuation_do_not(first, second):
    assert normalised(first) == normalised(second)


def test_a_text_under_two_emotions_may_differ_in_how_loud_it_is():
    assert exclaimed("Great!") != exclaimed("great.") and exclaimed("Great!!") == exclaimed("GREAT!")


def test_texts_that_differ_in_an_emoji_keep_their_emotions(tmp_path):
    """Guards: a data set of which everything is dropped."""
    table = [
        {"text": f"Great service {i}{ending}", "emotion": emotion}
        for emotion, ending in (("joy", " 😊"), ("anger", " 😡"), ("doubt", "?"), ("awe", "!"), ("calm", "."))
        for i in range(4)
    ]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*dropped")
        found = load_prompts(write(tmp_path / "mine.jsonl", table), max_samples=100)
    assert found.n_duplicates == 0 and found.emotions == ("joy", "anger", "doubt", "awe", "calm") and len(found.fit) == 10


def test_emotions_in_scripts_with_marks_are_read(tmp_path):
    """Guards: `not a name of letters` for Hindi, Thai and decomposed letters; words that differ in a vowel sign as one text."""
    names = ("खुशी", "เศร้า", "tre\u0301s", "neutral", "می\u200cترسم")
    table = [{"text": f"{word} {i}", "emotion": name} for name in names for i in range(3) for word in ("कि", "की")]
    found = load_prompts(write(tmp_path / "mine.csv", [row | {"text": f"{row['text']} {row['emotion']}"} for row in table]), max_samples=9)
    assert len(found.emotions) == 4 and found.n_duplicates == 0


@pytest.mark.parametrize("order", [1, -1])
def test_a_text_under_two_emotions_is_left_out(tmp_path, order):
    """Guards against a label decided by which row comes first."""
    table = [*rows(), {"text": "joy TEXT number 0", "emotion": "neutral"}]
    with pytest.warns(UserWarning, match="2 of 13 .* 0 repeat others, 2 stand under several emotions"):
        found = load_prompts(write(tmp_path / "mine.jsonl", table[::order]), max_samples=100)
    assert "joy text number 0" not in {normalised(p.text) for p in (*found.fit, *found.test)}


def test_only_texts_under_two_emotions(tmp_path):
    table = [{"text": "The same", "emotion": emotion} for emotion in ("joy", "neutral")]
    with pytest.warns(UserWarning), pytest.raises(UserError, match="no text under one"):
        load_prompts(write(tmp_path / "mine.jsonl", table), max_samples=1)


def test_the_hash_is_of_the_texts_in_any_order(builtin):
    assert fit_hash(builtin.fit) == fit_hash(builtin.fit[::-1]) != fit_hash(builtin.fit[1:])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([], "no rows"),
        (rows(emotions=("joy",)), "one emotion only"),
        ([*rows(), {"text": "  ", "emotion": "joy"}], "line 13.*empty"),
        ([*rows(), {"text": 5, "emotion": "joy"}], "line 13.*not a string"),
        ([*rows(), {"text": "x", "emotion": ""}], "line 13.*emotion"),
        ([*rows(), {"text": "x", "emotion": "../../etc"}], "line 13.*emotion"),
        ([*rows(), {"text": "x", "emotion": "joy", "role": "train"}], "line 13.*train"),
        ([*rows(), {"text": "x", "emotion": "joy", "role": "test"}], "some texts only"),
        (rows(role="fit"), "no neutral texts to test on"),
        ([*rows(n=1, role="fit"), {"text": "Open", "emotion": "neutral", "role": "test"}], "at least 2"),
        ([{"text": "x"}], "no column 'emotion'; it has text"),
        ([{"emotion": "joy"}], "no column 'text'"),
        ([*rows(), {"emotion": "joy"}], "line 13.*empty"),
        ([*rows(), {"text": "half \ud83d", "emotion": "joy"}], "line 13.*surrogate"),
        ([*rows(role="fit"), {"text": "x", "emotion": "joy", "role": ["test"]}], "line 13.*neither fit nor test"),
        ([*rows(n=2, role="fit"), *rows(n=2, emotions=("awe",), role="test")], "0 text.*'awe' to fit"),
    ],
)
def test_bad_files_are_refused_with_the_reason(tmp_path, table, message):
    with pytest.raises(UserError, match=message) as caught:
        load_prompts(write(tmp_path / "mine.jsonl", table), max_samples=10)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("latin.csv", b"text,emotion\ncaf\xe9,joy\n", r"not UTF-8 \(byte 16\)"),
        ("latin.jsonl", b'{"text": "caf\xe9"}', "not UTF-8"),
        ("broken.jsonl", b'{"text": "a", "emotion": "joy"}\n\n{"text": \n', "^broken.jsonl, line 3 is not JSON"),
        ("deep.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("list.jsonl", b"[1, 2]\n", "line 1 is not an object"),
        ("commas.csv", b"text,emotion\nWell, yes,joy\nWell, no,neutral\n", "line 2 has 3 fields.*quotes"),
        ("short.csv", b"text,emotion\nhello\n", "line 2 has 1 fields"),
        ("quote.csv", b'text,emotion\na,joy\n"b,joy\n', "line 3 cannot be read as csv"),
        ("twice.csv", b"text,emotion,text\na,joy,b\n", "twice"),
        ("empty.csv", b"", "no rows"),
        ("header.csv", b"text,emotion\n", "no rows"),
        ("fake.parquet", b"not parquet", "cannot be read as parquet"),
        ("notes.md", b"hello", "ends in .jsonl, .csv, .tsv, .txt, .parquet"),
        ("absent.csv", None, "does not exist"),
    ],
)
def test_unreadable_files(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_prompts(str(tmp_path / name), max_samples=5)
    assert "\n" not in str(caught.value)


def test_a_damaged_parquet_file_is_refused_and_never_a_traceback(tmp_path):
    """pyarrow raises exceptions that are no ValueError for text that is not UTF-8."""
    path = tmp_path / "mine.parquet"
    pd.DataFrame(rows()).to_parquet(path, compression=None)
    content = bytearray(path.read_bytes())
    content[content.index(b"joy text number 1")] = 0xE9
    path.write_bytes(content)
    with pytest.raises(UserError, match="mine.parquet") as caught:
        load_prompts(str(path), max_samples=5)
    assert "\n" not in str(caught.value)


def test_nulls_in_parquet_are_absent_roles_and_empty_texts(tmp_path):
    """pandas' NA has no truth value; a null once ended in a traceback."""
    absent = pd.DataFrame(rows()).assign(role=pd.array([None] * 12, dtype="string"))
    absent.to_parquet(tmp_path / "absent.parquet")
    assert "half" in load_prompts(str(tmp_path / "absent.parquet"), max_samples=5).split
    pd.DataFrame([*rows(), {"text": None, "emotion": "joy"}]).to_parquet(tmp_path / "null.parquet")
    with pytest.raises(UserError, match="null.parquet, row 13: the text is empty"):
        load_prompts(str(tmp_path / "null.parquet"), max_samples=5)


def test_what_spreadsheets_and_json_write_is_read(tmp_path):
    """A byte order mark, capitals in the ending, quoted commas and line ends, separators in JSON strings, spaces round names."""
    quoted = "".join(f'"{row["text"]}, then\r\nmore", {row["emotion"]} ,\r\n' for row in rows())
    (tmp_path / "sheet.CSV").write_bytes(f"\ufefftext, emotion,role\r\n{quoted}".encode())
    (tmp_path / "mine.jsonl").write_text(
        "\ufeff"
        + "\n".join(json.dumps({**row, "text": f"{row['text']}\u2028more"}, ensure_ascii=False) for row in rows()),
        encoding="utf-8",
    )
    for name, ending in (("sheet.CSV", ", then\nmore"), ("mine.jsonl", "\u2028more")):
        found = load_prompts(str(tmp_path / name), max_samples=100)
        assert found.emotions == ("joy",) and len(found.fit) == 6 and found.source == name
        assert all(re.fullmatch(rf"(joy|neutral) text number \d{ending}", p.text) for p in (*found.fit, *found.test))


def test_an_emotion_asked_for_twice_counts_once():
    """Twice the conditions, with the same names."""
    assert load_prompts(emotions=["anger", "apology", "anger"], max_samples=3).emotions == ("anger", "apology")


def test_unknown_emotions_list_the_known_ones():
    with pytest.raises(UserError, match="gratitude, anger, apology"):
        load_prompts(emotions=["joy"], max_samples=5)
    with pytest.raises(UserError, match="neutral is what"):
        load_prompts(emotions=["neutral"], max_samples=5)
    with pytest.raises(UserError, match="max_samples=0"):
        load_prompts(max_samples=0)


@pytest.mark.parametrize("name", ["../x", "a\nb", "<script>", "=cmd", "x" * 300])
def test_emotions_with_odd_names_are_refused_before_a_sweep(name, tmp_path):
    """Guards: hours of work that MLflow then does not log, since the emotion's name makes no metric."""
    (tmp_path / "d.jsonl").write_text(json.dumps({"text": "a", "emotion": name}), encoding="utf-8")
    with pytest.raises(UserError, match="emotion"):
        load_prompts(str(tmp_path / "d.jsonl"), max_samples=1)

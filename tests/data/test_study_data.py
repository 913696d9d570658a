"""The texts that a study reads are what they claim to be: distinct, even, free of emotion, and without a cue in the answers."""

from __future__ import annotations

import itertools
import json
import re
import statistics
from collections import Counter
from importlib.resources import files

import pytest

NAMES = ("prompts", "second_prompts", "neutral_passages", "multiple_choice", "instructions")
EMOTIONS = ("gratitude", "anger", "apology")
# Of the three emotions, and what would hint at them.
EMOTIONAL = re.compile(
    r"\b(thank|grat|appreciat|ang(er|ry)|furious|rage|annoy|hate|sorry|apolog|regret|forgiv|remorse|guilt|blame|fault|insult|kind(ness|ly)\b|"
    r"love|happy|sad\b|afraid|fear|cry\b|hurt|terrible|wonderful|awful)",
    re.IGNORECASE,
)


def rows(name: str) -> list[dict]:
    return [
        json.loads(line) for line in (files("emo_mlflow") / "data" / f"{name}.jsonl").read_text("utf-8").splitlines()
    ]


def texts(name: str) -> list[str]:
    return [" ".join((row["question"], *row["choices"])) if "question" in row else row["text"] for row in rows(name)]


def likeness(one: str, other: str) -> float:
    """Shared words over all words."""
    a, b = (set(re.findall(r"\w+", text.casefold())) for text in (one, other))
    return len(a & b) / len(a | b)


@pytest.mark.parametrize("name", NAMES[1:])
def test_texts_are_plain(name):
    """ASCII alone, so that a quotation mark is one character everywhere; no space at an end, where it would be a token of its own."""
    for text in texts(name):
        assert text.isascii() and text == text.strip() and "  " not in text


@pytest.mark.parametrize(("name", "most"), [("second_prompts", 0.5), ("neutral_passages", 0.3)])
def test_texts_are_not_each_others_variants(name, most):
    """A prompt that repeats another is no further evidence."""
    assert max(likeness(*pair) for pair in itertools.combinations(texts(name), 2)) < most


def test_second_prompts_are_of_other_kinds():
    """What holds on openings of stories should hold on questions and in a dialogue; none of the first set, or nearly, is among them."""
    found = rows("second_prompts")
    assert all(set(row) == {"text", "kind"} for row in found)
    assert Counter(row["kind"] for row in found) == {"question": 30, "dialogue": 30}
    assert all(row["text"].endswith("?") and "\n" not in row["text"] for row in found if row["kind"] == "question")
    for row in found:
        if row["kind"] == "dialogue":
            first, second = row["text"].split("\n")
            assert re.fullmatch(r"[A-Z][\w -]+: .+[.?!]", first) and re.fullmatch(r"[A-Z][\w-]+:", second)
        assert 2 <= len(row["text"].split()) <= 18
    first_set = texts("prompts")
    assert max(likeness(text, other) for text in texts("second_prompts") for other in first_set) < 0.5


def test_neutral_passages_are_of_one_size():
    found = rows("neutral_passages")
    assert len(found) == 60 and all(set(row) == {"text"} for row in found)
    assert all(30 <= len(row["text"].split()) <= 60 and row["text"].endswith(".") for row in found)
    sentences = [sentence for text in texts("neutral_passages") for sentence in re.split(r"(?<=\.) ", text)]
    first_set = texts("prompts")
    assert max(likeness(sentence, other) for sentence in sentences for other in first_set) < 0.7


@pytest.mark.parametrize("name", ["second_prompts", "neutral_passages", "multiple_choice"])
def test_nothing_there_is_emotional_by_itself(name):
    """`happy` and `hate` may be a choice among words; a text to continue or to measure damage on has none."""
    allowed = {"cheerful"} if name == "multiple_choice" else set()
    assert not [text for text in texts(name) if EMOTIONAL.search(text) and not any(word in text for word in allowed)]


def test_multiple_choice_has_no_cue():
    """Guards: a model that scores above chance by position or by length alone."""
    found = rows("multiple_choice")
    assert len(found) == 150 and all(set(row) == {"question", "choices", "answer", "kind"} for row in found)
    assert len({row["question"] for row in found}) == 150
    assert set(Counter(row["kind"] for row in found)) == {"world", "sense", "arithmetic", "language"}
    for kind, count in Counter(row["kind"] for row in found).items():
        positions = Counter(row["answer"] for row in found if row["kind"] == kind)
        assert 37 <= count <= 38 and set(positions) == set(range(4)) and max(positions.values()) <= 10
    ratios, longest, shortest = [], [], []
    for row in found:
        assert len(row["choices"]) == 4 == len({choice.casefold() for choice in row["choices"]})
        lengths = [len(choice) for choice in row["choices"]]
        right = lengths.pop(row["answer"])
        ratios.append(right / statistics.mean(lengths))
        longest.append(right > max(lengths))
        shortest.append(right < min(lengths))
    assert statistics.mean(ratios) == pytest.approx(1, abs=0.05) and max(ratios) < 1.75 and min(ratios) > 0.5
    assert max(statistics.mean(longest), statistics.mean(shortest)) < 0.25


def test_instructions_are_alike_for_every_emotion():
    """Three of each form; each names what its emotion is called, and its length is near the other emotions'."""
    found = rows("instructions")
    assert all(set(row) == {"emotion", "form", "text"} for row in found)
    assert Counter((row["emotion"], row["form"]) for row in found) == dict.fromkeys(
        itertools.product(EMOTIONS, ("prefix", "system")), 3
    )
    assert len({row["text"] for row in found}) == 18
    words = {"gratitude": "thank|grat", "anger": "ang|furious", "apology": "sorry|apolog|remorse"}
    for row in found:
        named = [emotion for emotion, pattern in words.items() if re.search(pattern, row["text"])]
        assert named == [row["emotion"]], row
    means = [statistics.mean(len(row["text"].split()) for row in found if row["emotion"] == name) for name in EMOTIONS]
    assert max(means) / min(means) < 1.1

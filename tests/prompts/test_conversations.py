"""Data sets of conversations: read, told apart, held out, and refused in one line where they cannot be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emo_mlflow.errors import UserError
from emo_mlflow.prompts.columns import Layout
from emo_mlflow.prompts.conversations import check_texts
from emo_mlflow.prompts.selection import emotions_to_continue, fit_hash, load_prompts
from emo_mlflow.types import Prompt, digest

Row = dict[str, object]


def turns(*said: str, last: str) -> list[dict[str, str]]:
    """User and assistant by turns, so that `last` is the last one's role."""
    roles = ("user", "assistant") if (len(said) % 2 == 1) == (last == "user") else ("assistant", "user")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(said)]


def rows() -> list[Row]:
    fit = [
        {"emotion": emotion, "messages": turns(f"Say {i}.", f"{emotion} answer {i}", last="assistant")}
        for emotion in ("joy", "neutral")
        for i in range(3)
    ]
    test = [{"emotion": "neutral", "messages": turns(f"Hello {i}", "Hi.", f"And {i}?", last="user")} for i in range(4)]
    return [*fit, *test]


def write(path: Path, table: list[Row]) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(table), path)
    else:
        path.write_text("\n".join(map(json.dumps, table)))
    return str(path)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_the_last_turn_says_what_a_conversation_is_for(tmp_path, suffix):
    found = load_prompts(write(tmp_path / f"chats{suffix}", rows()), max_samples=10)
    assert found.emotions == ("joy",) and len(found.fit) == 6 and len(found.test) == 4
    assert found.fit[0] == Prompt("joy answer 0", "joy", "fit", (("user", "Say 0."),))
    by_text = {prompt.text: prompt for prompt in found.test}
    assert by_text["And 2?"].before == (("user", "Hello 2"), ("assistant", "Hi."))
    assert "end with the assistant's turn to fit on" in found.split
    assert len({prompt.prompt_id for prompt in (*found.fit, *found.test)}) == 10


def test_one_turn_is_the_prompt_that_its_text_is(tmp_path):
    """It pairs with the sweep of a data set of texts, and what was said before makes it another prompt."""
    assert Prompt("Hello", "neutral", "test", ()).prompt_id == Prompt("Hello", "neutral", "test").prompt_id == digest("Hello", 12)
    assert Prompt("Hello", "neutral", "test", (("user", "a"), ("assistant", "b"))).prompt_id != digest("Hello", 12)
    found = load_prompts(write(tmp_path / "chats.jsonl", rows()), max_samples=10).fit
    asked_otherwise = (replace(found[0], before=(("user", "Say 9."),)), *found[1:])
    assert fit_hash(found) == fit_hash(found[::-1]) != fit_hash(asked_otherwise)


def test_a_conversation_counts_once_and_by_all_its_turns(tmp_path):
    """The same answer to another request is another conversation; case and punctuation make none; nor do several emotions."""
    again = {"emotion": "joy", "messages": turns("say 0", "Joy, answer 0!", last="assistant")}
    other = {"emotion": "joy", "messages": turns("Say 7.", "joy answer 0", last="assistant")}
    both = [{"emotion": emotion, "messages": turns("Why?", "So.", last="assistant")} for emotion in ("joy", "neutral")]
    with pytest.warns(UserWarning, match=r"3 of 14 texts were dropped: 1 repeat others, 2 stand under several"):
        found = load_prompts(write(tmp_path / "chats.jsonl", [*rows(), again, other, *both]), max_samples=10)
    assert sorted(prompt.text for prompt in found.fit if prompt.emotion == "joy") == ["joy answer 0", "joy answer 0", "joy answer 1", "joy answer 2"]


def test_nothing_is_continued_that_a_fitted_conversation_begins_with(tmp_path):
    """At any turn: a direction that was fitted behind a prompt has seen it."""
    longer = {"emotion": "joy", "messages": turns("hello 1", "hi", "and 1?", "Fine.", "Good?", "Yes!", last="assistant")}
    with pytest.warns(UserWarning, match="1 of 4 prompts are not continued: conversations to fit on begin with them"):
        found = load_prompts(write(tmp_path / "chats.jsonl", [*rows(), longer]), max_samples=10)
    assert sorted(prompt.text for prompt in found.test) == ["And 0?", "And 2?", "And 3?"]


GOOD = turns("Hello", last="user")


@pytest.mark.parametrize(
    ("messages", "more", "message"),
    [
        ([], {}, "the conversation is empty"),
        (None, {}, "messages is missing: a conversation is a list"),
        ("Hello", {}, "messages is 'Hello': a conversation is a list of {role, content}"),
        (["Hello"], {}, "turn 1 is 'Hello': a turn is {role, content}"),
        ([{"role": "human", "content": "Hello"}], {}, "turn 1 has the role 'human': choose among system, user, assistant"),
        ([{"content": "Hello"}], {}, "turn 1 has the role None"),
        ([{"role": ["user"], "content": "Hello"}], {}, r"turn 1 has the role \['user'\]"),
        ([{"role": "user", "content": [{"type": "text", "text": "Hello"}]}], {}, "turn 1: the content is no text"),
        ([{"role": "user", "content": None}], {}, "turn 1: the content is no text"),
        ([{"role": "user", "content": " "}], {}, "turn 1: the content is empty"),
        ([{"role": "user", "content": "\ud800"}], {}, "half a character"),
        ([*GOOD, {"role": "assistant", "content": "Hi", "tool_calls": [{}]}], {}, "turn 2 has 'tool_calls' too"),
        ([*GOOD, {"role": "system", "content": "Be kind."}], {}, "ends with a system turn"),
        ([{"role": "assistant", "content": "Hi"}], {}, "answers none of a user's"),
        ([{"role": "system", "content": "Be kind."}, {"role": "assistant", "content": "Hi"}], {}, "answers none of a user's"),
        (GOOD, {"role": "fit"}, "role fit, and the conversation ends with a user's turn: end it with the assistant's"),
        ([*GOOD, {"role": "assistant", "content": "Hi"}], {"role": "test"}, "role test, and the conversation ends with the assistant's turn"),
    ],
)
def test_what_is_no_conversation_is_a_line_that_names_the_row(tmp_path, messages, more, message):
    path = write(tmp_path / "chats.jsonl", [*rows(), {"emotion": "joy", "messages": messages, **more}])
    with pytest.raises(UserError, match=f"chats.jsonl, line 11.*{message}") as caught:
        load_prompts(path, max_samples=5)
    assert "\n" not in str(caught.value)


def test_texts_stay_texts_where_a_file_has_both(tmp_path):
    """And a column that is named may hold either."""
    both = [{"text": f"{emotion} {i}", "emotion": emotion, "messages": GOOD} for emotion in ("joy", "neutral") for i in range(4)]
    path = write(tmp_path / "both.jsonl", both)
    assert all(prompt.before is None for prompt in load_prompts(path, max_samples=5).fit)
    path = write(tmp_path / "named.jsonl", [{"chat": row["messages"], "emotion": row["emotion"]} for row in rows()])
    assert len(load_prompts(path, max_samples=10, layout=Layout(text_column="chat")).test) == 4


def test_texts_beside_conversations_need_a_role(tmp_path):
    """A column that is named may hold both."""
    mixed = [{"said": row["messages"], "emotion": row["emotion"]} for row in rows()]
    mixed += [{"said": f"{emotion} {i}", "emotion": emotion, "role": "fit"} for emotion in ("joy", "neutral") for i in range(2)]
    found = load_prompts(write(tmp_path / "mixed.jsonl", mixed), max_samples=10, layout=Layout(text_column="said"))
    assert len(found.fit) == 10 and sum(prompt.before is None for prompt in found.fit) == 4
    del mixed[-1]["role"]
    with pytest.raises(UserError, match="texts without a role beside conversations"):
        load_prompts(write(tmp_path / "mixed.jsonl", mixed), max_samples=10, layout=Layout(text_column="said"))


def test_conversations_are_refused_where_texts_are_needed(tmp_path):
    found = load_prompts(write(tmp_path / "chats.jsonl", rows()), max_samples=10)
    with pytest.raises(UserError, match=r"has conversations \(the first ends with 'joy answer 0'\), and so on"):
        check_texts(found.fit, "so on")
    with pytest.raises(UserError, match="continues texts of each emotion"):
        emotions_to_continue(found, 3, 0)
    with pytest.raises(UserError, match="no neutral texts to test on: give conversations that end with a user's turn"):
        load_prompts(write(tmp_path / "fit.jsonl", rows()[:6]), max_samples=10)

"""Conversations of a data set, in the form of OpenAI's messages: a list of {role, content}."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from emo_mlflow.common.names import HALF, shown
from emo_mlflow.errors import UserError
from emo_mlflow.types import Prompt, Role, Turns

COLUMN = "messages"
ROLES = ("system", "user", "assistant")


def conversation(place: str, value: object) -> tuple[str, Turns, Role]:
    """What the last turn says, the turns before it, and what the conversation is for: one that ends with a user's turn is continued, and
    one that ends with the assistant's is fitted on. Which order of turns there may be is the template's to say.

    Args:
        place: where a person finds it, for messages.

    Raises:
        UserError: for anything but turns with a text each, or a last turn that is neither.
    """
    if not isinstance(value, list):
        raise UserError(f"{place}: {COLUMN} is {'missing' if value is None else shown(value)}: a conversation is a list of {{role, content}}")
    if not value:
        raise UserError(f"{place}: the conversation is empty: fill it in or remove the row")
    turns = tuple(_turn(f"{place}, turn {number}", turn) for number, turn in enumerate(value, start=1))
    *before, (role, text) = turns
    if role == "user":
        return text, tuple(before), "test"
    if role == "system":
        raise UserError(f"{place}: the conversation ends with a system turn: end it with a user's, to continue it, or the assistant's, to fit on it")
    if not before or before[-1][0] != "user":
        raise UserError(f"{place}: the assistant's turn, the last one, answers none of a user's: put that before it")
    return text, tuple(before), "fit"


def _turn(place: str, turn: object) -> tuple[str, str]:
    if not isinstance(turn, Mapping):
        raise UserError(f"{place} is {shown(turn)}: a turn is {{role, content}}")
    role, content = turn.get("role"), turn.get("content")
    if role not in ROLES:
        raise UserError(f"{place} has the role {shown(role)}: choose among {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise UserError(f"{place}: the content is no text: {shown(content)}")
    if not content.strip():
        raise UserError(f"{place}: the content is empty: fill it in or remove the row")
    if HALF.search(content):
        raise UserError(f"{place}: the content holds half a character (a lone surrogate): {shown(content)}")
    if further := [name for name, value in turn.items() if name not in ("role", "content") and value is not None]:
        raise UserError(f"{place} has {shown(further[0])} too, which a template may read and this package does not: take it out")
    return str(role), content


def check_texts(prompts: Iterable[Prompt], why: str) -> None:
    """Refuses conversations where there is no place for them.

    Raises:
        UserError: naming the first one.
    """
    if found := next((prompt for prompt in prompts if prompt.before is not None), None):
        raise UserError(f"the data set has conversations (the first ends with {found.text[:40]!r}), and {why}")

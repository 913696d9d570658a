"""How texts become tokens: as they are, or as turns of a chat; and which of the tokens directions are fitted on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from emo_mlflow.common.names import one_line
from emo_mlflow.errors import UserError
from emo_mlflow.types import FitOn, Template


class HasForm(Protocol):
    """Settings of a command that turns texts into tokens."""

    @property
    def template(self) -> Template | Literal["auto"]:
        """As asked for."""

    @property
    def system(self) -> str:
        """The system turn; empty for none."""

    @property
    def fit_on(self) -> FitOn | None:
        """None where the template decides."""

    @property
    def prepend_bos(self) -> bool:
        """Whether a document-start token comes first."""


@dataclass(frozen=True)
class Form:
    """How texts become tokens.

    Attributes:
        template: `none`: a text as it is. `chat`: a text to continue is a user's turn, a text to fit on is the answer to one.
        system: the system turn; empty for none. A template may have one of its own.
        prepend_bos: whether a document-start token comes first. A template says itself what comes first.
        fit_on: the tokens that directions are fitted on: the assistant's (`response`), all but the first (`text`), or the last one.
    """

    template: Template = "none"
    system: str = ""
    prepend_bos: bool = True
    fit_on: FitOn = "text"


def form_of(settings: HasForm) -> Form:
    """The form of settings whose template is known to be one or the other (`models.chat.resolved_form`)."""
    assert settings.template != "auto"
    return Form(settings.template, settings.system, settings.prepend_bos, fit_on_of(settings.fit_on, settings.template))


def form_line(settings: HasForm) -> str:
    """How texts become tokens, for a person."""
    if settings.template == "none":
        return "none: prompts are continued as they are"
    system = f', behind the system turn "{one_line(settings.system)[:60]}"' if settings.system else ""
    return f"chat: a prompt is a user's turn in the model's own template{system}; directions are fitted on {_FITTED[form_of(settings).fit_on]}"


_FITTED = {"response": "the assistant's tokens", "text": "all tokens but the first", "last": "the last token"}


def fit_on_of(fit_on: FitOn | None, template: str) -> FitOn:
    """What directions are fitted on where nothing else was asked for: under a template, what the assistant says."""
    return fit_on or ("response" if template == "chat" else "text")


def check_form(settings: HasForm) -> None:
    """Refuses what can be known to contradict itself before the model's template is.

    Raises:
        UserError: naming the parameters.
    """
    if settings.template == "chat" and not settings.prepend_bos:
        raise UserError("prepend_bos=false with template=chat: the template says what comes first; leave prepend_bos out, or use template=none")
    if settings.template == "none":
        check_plain(settings.system, settings.fit_on)


def check_plain(system: str, fit_on: FitOn | None) -> None:
    """Refuses what texts that are no turns of a chat do not have.

    Raises:
        UserError: naming the parameter.
    """
    if system:
        raise UserError(f"system={system[:40]!r} needs a chat template: give template=chat, or leave it out")
    if fit_on == "response":
        raise UserError("fit_on=response needs a chat template: plain text has no assistant's turn; give template=chat, or fit_on=text")

"""Conditions that ask for an emotion instead of steering towards it: nothing is edited, and something stands in front of every prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from emo_mlflow.models.chat import takes_system
from emo_mlflow.models.loading import LoadedModel
from emo_mlflow.prompts.asking import BETWEEN, examples, instructions
from emo_mlflow.prompts.selection import PromptSet
from emo_mlflow.settings.sweep import SweepFields
from emo_mlflow.settings.templates import Form, form_of
from emo_mlflow.types import ASKING, Condition, Prompt


def asking_conditions(settings: SweepFields, emotions: Sequence[str], prompts: PromptSet) -> tuple[Condition, ...]:
    """A condition per emotion and arm other than `direction`.

    Args:
        settings: of a sweep whose template is known.

    Raises:
        UserError: for an instruction of an emotion that is not swept, or more shots than there are texts.
    """
    fronts: dict[str, Mapping[str, str]] = {}
    if "instruction" in settings.arms:
        fronts["instruction"] = instructions(settings.instructions, emotions, form_of(settings).template)
    if "examples" in settings.arms:
        fronts["examples"] = examples(prompts.fit, emotions, settings.shots, settings.seed)
    return tuple(Condition(kind, emotion, front=fronts[kind][emotion]) for kind in ASKING if kind in fronts for emotion in emotions)


def asked(loaded: LoadedModel, prompts: Sequence[Prompt], form: Form, front: str) -> tuple[list[Prompt], Form]:
    """Prompts with something in front, and the form in which they become tokens.

    In a chat it is a system turn, behind the user's own system turn; where the template takes none, it begins the user's turn.
    """
    if form.template == "chat" and takes_system(loaded.tokenizer):
        return list(prompts), replace(form, system=f"{form.system}{BETWEEN}{front}" if form.system else front)
    return [replace(prompt, text=f"{front}{BETWEEN}{prompt.text}") for prompt in prompts], form

"""The model's own chat template: a prompt as a user's turn, what ends a turn, and whether the model is one to chat with.

Token ids are those of `tokenizer.apply_chat_template`, with the generation prompt that the assistant's answer follows, and with
`enable_thinking=False` for models that would think aloud first. Nothing is put in front: a template says itself how a document starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from emo_mlflow.errors import UserError, reason_of
from emo_mlflow.models.loading import LoadedModel, load_tokenizer
from emo_mlflow.models.names import ModelSpec
from emo_mlflow.prompts.asking import BETWEEN
from emo_mlflow.prompts.conversations import check_texts
from emo_mlflow.settings.templates import Form, HasForm, check_form, fit_on_of
from emo_mlflow.types import Prompt, Template, Tokens, Turns

REQUEST = "Write a few sentences."  # what a text to fit on answers; one for all, so that it tells nothing of their difference
_PROBE = "zwqvx"  # a word that no template has

Turn = Mapping[str, str]


def turns(user: str, system: str, before: Turns = ()) -> list[Turn]:
    """A user's turn, behind what was said before, behind a system turn if there is one; it follows in the one that a conversation has."""
    said = [*before, ("user", user)]
    if system and said[0][0] == "system":
        said[0] = ("system", f"{said[0][1]}{BETWEEN}{system}")
    elif system:
        said.insert(0, ("system", system))
    return [{"role": role, "content": content} for role, content in said]


def opening(prompt: Prompt, system: str) -> list[Turn]:
    """What the assistant answers: a prompt to continue; or what stands before a text to fit on, which is `REQUEST` where nothing does."""
    if prompt.role == "test":
        return turns(prompt.text, system, prompt.before or ())
    before = prompt.before or (("user", REQUEST),)
    return turns(before[-1][1], system, before[:-1])


def chat_tokens(tokenizer: PreTrainedTokenizerBase, conversation: Sequence[Turn]) -> Tokens:
    """Token ids of a conversation and the generation prompt, after which the assistant answers.

    Raises:
        UserError: if the tokenizer has no template, or its template refuses the conversation.
    """
    return tuple(_apply(tokenizer, conversation, tokenize=True, add_generation_prompt=True))


def _apply(tokenizer: PreTrainedTokenizerBase, conversation: Sequence[Turn], **options: bool) -> Any:
    if not tokenizer.chat_template:
        raise UserError("this model's tokenizer has no chat template: use template=none, or the instruct model of its family")
    apply: Any = tokenizer.apply_chat_template
    try:
        return apply(list(conversation), enable_thinking=False, return_dict=False, **options)
    except Exception as error:  # a template is a program, and fails in as many ways
        if conversation[0]["role"] == "system" and (_takes(tokenizer, conversation[1:]) or len(conversation) == 2):
            advice = "leave out system=, or the conversation's own" if _takes(tokenizer, conversation[1:]) else "use template=none"
            raise UserError(f"the model's chat template refuses a system turn ({reason_of(error)}): {advice}") from None
        if len(conversation) > 1:
            roles = ", ".join(turn["role"] for turn in conversation)
            raise UserError(f"the model's chat template refuses turns of {roles} ({reason_of(error)}): bring them into its order") from None
        raise UserError(f"the model's chat template refuses a user's turn ({reason_of(error)}): use template=none") from None


def takes_system(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template has a place for a system turn."""
    return _takes(tokenizer, turns("?", "?"))


def _takes(tokenizer: PreTrainedTokenizerBase, conversation: Sequence[Turn]) -> bool:
    try:
        _apply(tokenizer, conversation, tokenize=False, add_generation_prompt=True)
    except UserError:
        return False
    return True


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that the template writes after the assistant's words; None if it writes none.

    Raises:
        UserError: as `chat_tokens`.
    """
    conversation = [*turns("?", ""), {"role": "assistant", "content": _PROBE}]
    text = str(_apply(tokenizer, conversation, tokenize=False, add_generation_prompt=False))
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} | set(tokenizer.all_special_ids)
    after = tokenizer(text.rpartition(_PROBE)[2], add_special_tokens=False)["input_ids"]
    return next((int(token) for token in after if token in special), None)


def resolved_form(spec: ModelSpec, settings: HasForm, prompts: Sequence[Prompt] = ()) -> Form:
    """How a command's texts become tokens, known to work: read from the tokenizer alone, before any weights are.

    Under `template=auto` a model is one to chat with if its tokenizer has a template and what ends a turn in it is one of the model's own
    end tokens: base models that carry a template have another.

    Args:
        prompts: to fit on and to continue.

    Raises:
        UserError: if there is no template, it refuses the system turn or a conversation, or what was asked for needs another template.
    """
    template: Template = "none"
    if settings.template != "none":
        tokenizer, ends = load_tokenizer(spec)
        if settings.template == "chat" or (tokenizer.chat_template and end_of_turn(tokenizer) in ends):
            template = "chat"
            chat_tokens(tokenizer, turns(REQUEST, settings.system))
            _check_conversations(tokenizer, [prompt for prompt in prompts if prompt.before is not None], settings.system)
    if template == "none":
        what = "none reads texts alone" if settings.template == "none" else "auto finds no instruct model"
        check_texts(prompts, f"template={what}: give template=chat, or a data set of texts")
    form = Form(template, settings.system, settings.prepend_bos, fit_on_of(settings.fit_on, template))
    check_form(form)
    return form


def _check_conversations(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], system: str) -> None:
    for prompt in prompts:
        try:
            _apply(tokenizer, opening(prompt, system), tokenize=False, add_generation_prompt=True)
        except UserError as error:
            raise UserError(f"the conversation that ends with {prompt.text[:40]!r}: {error}") from None


def end_tokens(loaded: LoadedModel, form: Form) -> tuple[int, ...]:
    """Every token that ends a text: under a template, the end of a turn too."""
    turn = end_of_turn(loaded.tokenizer) if form.template == "chat" else None
    return loaded.eos_ids if turn is None else tuple(sorted({*loaded.eos_ids, turn}))

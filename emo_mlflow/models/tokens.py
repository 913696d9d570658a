"""Texts to token ids, and back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from emo_mlflow.common.names import shown
from emo_mlflow.errors import UserError
from emo_mlflow.models.chat import chat_tokens, opening
from emo_mlflow.models.loading import LoadedModel
from emo_mlflow.settings.templates import Form
from emo_mlflow.types import FitTexts, Prompt, Tokens, Turns


def text_decoder(loaded: LoadedModel) -> Callable[[list[list[int]]], list[str]]:
    """Token ids of new tokens to texts that continue a prompt, without special tokens: prompt + text is the whole text.

    Some decoders (Llama 2, Mistral) take a space from the start of what they are given. So new tokens are decoded behind a word, which is
    cut off again.
    """
    word = _first_word(loaded.tokenizer)
    before = _decode(loaded.tokenizer, [word])[0]

    def decode(batch: list[list[int]]) -> list[str]:
        texts = _decode(loaded.tokenizer, [[*word, *ids] for ids in batch])
        alone = _decode(loaded.tokenizer, batch) if any(not text.startswith(before) for text in texts) else texts
        return [text[len(before) :] if text.startswith(before) else own for text, own in zip(texts, alone, strict=True)]

    return decode


def _decode(tokenizer: PreTrainedTokenizerBase, batch: list[list[int]]) -> list[str]:
    return list(tokenizer.batch_decode(batch, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _first_word(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A token that is letters alone, of whole characters; none if the vocabulary has none."""
    return next(([i] for i in sorted(tokenizer.get_vocab().values()) if _decode(tokenizer, [[i]])[0].isalpha()), [])


def encode(loaded: LoadedModel, texts: Sequence[str], prepend_bos: bool) -> list[Tokens]:
    """Token ids of each text, with the document-start token in front if asked for, unless the text itself begins with it.

    Control tokens that are written in a text are read as such, and a warning says so.

    Raises:
        UserError: for a text with a token that the model does not have, or if there is no document-start token.
    """
    if prepend_bos and loaded.document_start_id is None:
        raise UserError(
            f"{loaded.spec.name}: its tokenizer has no token to start a document with (BOS, <|endoftext|> or EOS): run with prepend_bos=false"
        )
    start = (loaded.document_start_id,) if prepend_bos else ()
    found = [tuple(loaded.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    _say_control_tokens(loaded.tokenizer, found)
    for text, ids in zip(texts, found, strict=True):
        _check_vocabulary(loaded, text, ids)
    return [ids if ids[:1] == start else (*start, *ids) for ids in found]


def _check_vocabulary(loaded: LoadedModel, text: str, ids: Tokens) -> None:
    size = loaded.model.config.get_text_config().vocab_size
    if past := [i for i in ids if i >= size]:
        raise UserError(
            f"the text {text[:40]!r} has the token {loaded.tokenizer.convert_ids_to_tokens(past[0])!r} ({past[0]}), which the tokenizer of "
            f"{loaded.spec.name} has and the model has not, with a vocabulary of {size}: take it out"
        )


def check_context(loaded: LoadedModel, texts: Sequence[str], tokens: Sequence[Tokens]) -> None:
    """Refuses texts that are longer than the model's context: past it, it says nothing that means anything.

    Raises:
        UserError: naming the first one.
    """
    for text, ids in zip(texts, tokens, strict=True):
        if len(ids) > loaded.context:
            raise UserError(
                f"the text {text[:40]!r} to fit on has {len(ids)} tokens, more than the model's context of {loaded.context}: "
                "shorten it or take it out"
            )


def _say_control_tokens(tokenizer: PreTrainedTokenizerBase, found: Sequence[Tokens]) -> None:
    control = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} | set(tokenizer.all_special_ids)
    control.discard(tokenizer.unk_token_id)
    if holding := [ids for ids in found if control.intersection(ids)]:
        names = sorted({str(tokenizer.convert_ids_to_tokens(i)) for ids in holding for i in control.intersection(ids)})
        warnings.warn(
            f"{len(holding)} of {len(found)} texts hold control tokens of this model, {', '.join(map(shown, names[:4]))}: they are read as such and "
            "not as characters, as a rendered chat prompt means it; take them out where they are part of what somebody wrote",
            stacklevel=3,
        )


def encode_prompts(loaded: LoadedModel, prompts: Sequence[Prompt], form: Form) -> list[Tokens]:
    """Token ids of each prompt that is to be continued: as it is, or as a user's turn, or a conversation, that the assistant answers."""
    texts = [prompt.text for prompt in prompts]
    if form.template == "none":
        return encode(loaded, texts, form.prepend_bos)
    encode(loaded, [*texts, *_said_before(prompts)], prepend_bos=False)  # which tells of control tokens in them
    found = [chat_tokens(loaded.tokenizer, opening(prompt, form.system)) for prompt in prompts]
    for text, ids in zip(texts, found, strict=True):
        _check_vocabulary(loaded, text, ids)
    return found


def _said_before(prompts: Sequence[Prompt]) -> list[str]:
    return [content for prompt in prompts for _, content in prompt.before or ()]


def encode_fit_texts(loaded: LoadedModel, prompts: Sequence[Prompt], form: Form) -> FitTexts:
    """Token ids of each text that directions are fitted on, and which of them are measured.

    Under a template the text is the assistant's answer to `REQUEST`, or to the conversation before it, as generation would have written it: its
    tokens follow the generation prompt, and no end of turn follows them.

    Raises:
        UserError: as `encode` and `check_context`.
    """
    texts = [prompt.text for prompt in prompts]
    asked: dict[Turns | None, Tokens] = {prompt.before: () for prompt in prompts}
    if form.template == "chat":
        asked = {prompt.before: chat_tokens(loaded.tokenizer, opening(prompt, form.system)) for prompt in {p.before: p for p in prompts}.values()}
        encode(loaded, _said_before(prompts), prepend_bos=False)  # which tells of control tokens in them
    own = encode(loaded, texts, form.prepend_bos and form.template == "none")
    fronts = [asked[prompt.before] for prompt in prompts]
    tokens = tuple((*front, *ids) for front, ids in zip(fronts, own, strict=True))
    check_context(loaded, texts, tokens)
    first = {"text": [1] * len(tokens), "response": [max(1, len(front)) for front in fronts], "last": [len(ids) - 1 for ids in tokens]}
    return FitTexts(tokens, tuple(first[form.fit_on]))

"""The token that starts a document, and those that end a text."""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from emo_mlflow.common.names import shown
from emo_mlflow.errors import UserError

END_OF_DOCUMENT = "<|endoftext|>"
CHAT_TURN = "<|im_start|>"  # a BOS in name only: in front of a text it promises a chat's role


def document_start_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token in front of a document in training.

    BOS; where there is none, or it opens a chat turn, `<|endoftext|>`; where there is none, EOS. None if the tokenizer has none of these.
    """
    vocabulary = tokenizer.get_vocab()
    bos = tokenizer.bos_token
    for token in (None if bos == CHAT_TURN else bos, END_OF_DOCUMENT, tokenizer.eos_token):
        if token in vocabulary:
            return int(vocabulary[token])
    return None


def absent_ids(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> tuple[int, ...]:
    """The numbers below `vocab_size` that stand for no token."""
    return tuple(sorted(set(range(vocab_size)).difference(tokenizer.get_vocab().values())))


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, start: int | None) -> tuple[int, ...]:
    """Every token that ends a text, the document-start token `start` among them: who writes it begins another text.

    Raises:
        UserError: if a configuration names something that is no token's number, or the number of none that the model has.
    """
    ids = set() if start is None else {start}
    size = model.config.get_text_config().vocab_size
    for where, named in (("generation_config.json", model.generation_config), ("config.json", model.config), ("the tokenizer", tokenizer)):
        value = getattr(named, "eos_token_id", None)
        found = value if isinstance(value, list) else [] if value is None else [value]
        if wrong := [item for item in found if type(item) is not int]:
            raise UserError(f"{tokenizer.name_or_path}: eos_token_id {shown(wrong[0])} is no token's number")
        if past := [item for item in found if not 0 <= item < size]:
            raise UserError(
                f"{tokenizer.name_or_path}: eos_token_id {past[0]} of {where} is past the model's vocabulary of {size}: correct it there"
            )
        ids.update(found)
    return tuple(sorted(ids))

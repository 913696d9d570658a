"""Texts to token ids, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from emo_mlflow.models.loading import LoadedModel
from emo_mlflow.types import Tokens


def text_decoder(loaded: LoadedModel) -> Callable[[list[list[int]]], list[str]]:
    """Token ids of new tokens to texts, without special tokens."""

    def decode(batch: list[list[int]]) -> list[str]:
        texts = loaded.tokenizer.batch_decode(batch, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return list(texts)

    return decode

def encode(loaded: LoadedModel, texts: Sequence[str], prepend_bos: bool) -> list[Tokens]:
    """Token ids of each text, with the document-start token in front if asked for."""
    start = (loaded.document_start_id,) if prepend_bos else ()
    return [(*start, *loaded.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]

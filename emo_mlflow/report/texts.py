"""The languages that a comparison's report can be in."""

from __future__ import annotations

from collections.abc import Mapping

from emo_mlflow.errors import UserError
from emo_mlflow.report import texts_en, texts_ja

LANGUAGES: dict[str, Mapping[str, str]] = {"en": texts_en.TEXTS, "ja": texts_ja.TEXTS}
OF_HEADS: dict[str, Mapping[str, str]] = {"en": texts_en.OF_HEADS, "ja": texts_ja.OF_HEADS}


def texts(language: str, phase: str = "residual") -> Mapping[str, str]:
    """A language's words, by key; templates for str.format.

    Args:
        phase: `head` for the words of a comparison of heads.

    Raises:
        UserError: for a language that reports are not written in.
    """
    if language not in LANGUAGES:
        raise UserError(f"language={language!r}: reports are in {' or '.join(LANGUAGES)}")
    return {**LANGUAGES[language], **(OF_HEADS[language] if phase == "head" else {})}

"""Which direction is fitted: a method's name, or a subspace with its rank."""

from __future__ import annotations

import re

from emo_mlflow.errors import UserError

METHODS = ("mean_diff", "pc1", "lda", "logistic")  # what `vectors` judges unless told otherwise; pc2, pc3, ... are there too


def parse_method(text: str) -> tuple[str, int]:
    """Reads `mean_diff`, `lda`, `logistic` or `pcN` as a method's name and, for a principal axis, its number from 1 (else 1).

    Raises:
        UserError: if it is none of these.
    """
    if text in ("mean_diff", "lda", "logistic"):
        return text, 1
    if re.fullmatch(r"pc[1-9]\d{0,3}", text):
        return "pc", int(text[2:])
    raise UserError(f"method {text!r} is not known: use mean_diff, pc1 (pc2, ...), lda or logistic")


def parse_direction(text: str) -> tuple[str, int | None]:
    """Reads `mean_diff`, `pc1`, `lda`, `logistic` or `subspace:K` as a method's name and, for a subspace, its rank.

    Raises:
        UserError: if it is none of these.
    """
    name, colon, rank = text.partition(":")
    if name == "subspace" and re.fullmatch(r"[1-9]\d{0,3}", rank):
        return name, int(rank)
    if colon or name == "subspace":
        raise UserError(f"direction {text!r} is not known: a subspace is given with its rank, as in subspace:3")
    parse_method(name)
    return name, None

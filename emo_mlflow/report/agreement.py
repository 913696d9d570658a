"""One sentence on how far a sweep's scores can be trusted, from what its scorers' cards say of texts like these."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from emo_mlflow.report.blocks import Paragraph
from emo_mlflow.scoring.agreement import Agreement, parse_agreements


def agreement_paragraphs(facts: Mapping[str, Any], own: Collection[str]) -> list[Paragraph]:
    """How well each scorer of a sweep agrees with readers on text that was written under intervention; none of a sweep that does not say.

    Args:
        facts: of a sweep.
        own: metrics that the report speaks of, whose AUC is given; the rank correlations are given of all.
    """
    found = {name: parse_agreements(rows, f"agreement of {name}") for name, rows in facts.get("agreement", {}).items()}
    return [Paragraph(_measured(name, rows, own) if rows else _unknown(name)) for name, rows in found.items()]


def _unknown(name: str) -> str:
    more = "emo-mlflow label and emo-mlflow agree do that"
    return f"How well the scorer {name} agrees with readers on text that was written under intervention has not been measured; {more}."


def _measured(name: str, rows: tuple[Agreement, ...], own: Collection[str]) -> str:
    parts = [_auc(row) for row in rows if row.measure == "auc" and row.metric in own]
    ranks = {row.question: row for row in reversed(rows) if row.measure == "spearman"}
    parts += [f"{question} by a rank correlation of {row.value:.2f}{_at_most(row)}" for question, row in sorted(ranks.items(), reverse=True)]
    n = max(row.n for row in rows)
    return (
        f"On {n} texts that were written under intervention, labelled by readers who did not know how, the scorer {name} agrees with them: "
        f"{'; '.join(parts)}. On texts of other models it may agree less."
    )


def _at_most(row: Agreement) -> str:
    return "" if row.at_most is None else f" (of {row.at_most:.2f} at most, because readers give many texts the same label)"


def _auc(row: Agreement) -> str:
    few = ", which are too few to say" if row.too_few else ""
    return f"{row.metric} with an AUC of {row.value:.2f} [{row.low:.2f}, {row.high:.2f}] ({row.positives} texts with a hint of {row.question}{few})"

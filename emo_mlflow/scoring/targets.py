"""Which metric an emotion is expected to move, and which way: the one place for these rules."""

from __future__ import annotations

from collections.abc import Collection

from emo_mlflow.steering import operations

TARGETS = {
    "gratitude": "goemotions.gratitude",
    "anger": "goemotions.anger",
    "apology": "goemotions.remorse",
}


def target_metric(emotion: str, metrics: Collection[str]) -> str | None:
    """The metric of an emotion among those that were measured: its own GoEmotions label; None if there is none."""
    name = TARGETS.get(emotion, f"goemotions.{emotion}")
    return name if name in metrics else None


def expected_sign(operation: str) -> int:
    """Whether an intervention that acts as supposed raises (1) the emotion's own label or lowers it (-1).

    Raises:
        UserError: for an operation that there is not.
    """
    return operations.operation(operation).expected_sign

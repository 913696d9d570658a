"""Which metric an emotion is expected to move, and which way: the one place for these rules."""

from __future__ import annotations

from collections.abc import Collection

from emo_mlflow.common.names import same_name
from emo_mlflow.steering import operations
from emo_mlflow.steering.operations.declaration import StreamEdit, nothing

TARGETS = {
    "gratitude": "goemotions.gratitude",
    "anger": "goemotions.anger",
    "apology": "goemotions.remorse",
}


def target_metric(emotion: str, metrics: Collection[str]) -> str | None:
    """The metric of an emotion among those that were measured: its own GoEmotions label, whatever its case; None if there is none."""
    name = TARGETS.get(same_name(emotion), f"goemotions.{same_name(emotion)}")
    return name if name in metrics else None


def expected_sign(operation: str, alpha: float = 1.0) -> int:
    """Whether an intervention that acts as supposed raises (1) the emotion's own label or lowers it (-1).

    What adds alpha times a direction does the opposite at a negative alpha, and a direction that is clamped to 0 is as good as taken out.

    Raises:
        UserError: for an operation that there is not.
    """
    found = operations.operation(operation)
    against = isinstance(found, StreamEdit) and found.shift is not nothing and alpha <= 0
    return -found.expected_sign if against else found.expected_sign

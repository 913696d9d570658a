"""Which metric an emotion's direction is expected to raise: the one place for this rule."""

from __future__ import annotations

from collections.abc import Collection

TARGETS = {
    "gratitude": "goemotions.gratitude",
    "anger": "goemotions.anger",
    "apology": "goemotions.remorse",
}


def target_metric(emotion: str, metrics: Collection[str]) -> str | None:
    """The metric of an emotion among those that were measured: its own GoEmotions label; None if there is none."""
    name = TARGETS.get(emotion, f"goemotions.{emotion}")
    return name if name in metrics else None

"""Scores of studies that nobody wrote texts for: skewed, near 0, prompts and directions crossed, as in sweeps of small models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import expit

from emo_mlflow.statistics.sequential import Looks
from emo_mlflow.studying.protocol import Arm, Design, Place, draws_limit

EMOTIONS = ("gratitude", "anger", "apology")
METRICS = {"gratitude": "goemotions.gratitude", "anger": "goemotions.anger", "apology": "goemotions.remorse"}


def design_of(
    n: int = 30,
    procedure: str = "holm",
    controls: Sequence[str] = ("isotropic",),
    emotions: Sequence[str] = EMOTIONS,
    looks: tuple[int, ...] | None = None,
    unit: str = "kl",
) -> Design:
    """A design without a model."""
    places = tuple(Place(emotion, METRICS[emotion], (3,), 0.2, unit, 0.95, "given") for emotion in emotions)
    return Design(
        places=places,
        direction="mean_diff",
        controls=tuple(controls),
        procedure=procedure,
        limit=draws_limit(procedure, len(emotions)),
        looks=Looks(looks or (n,)),
        prompts=tuple(f"p{i}" for i in range(n)),
        second=(),
        scope="generated",
        patch_window=None,
        site="resid_pre",
        sequence_length=20,
        temperature=0.0,
        seed=0,
    )


class World:
    """A bank whose scores are drawn: prompt effects, a deviation of every direction, and noise on the logit scale.

    Args:
        effects: by emotion, what its direction adds on the logit scale; 0 makes it a random direction.
        spread: sd of the directions' deviations.
        level: logit of a typical score without a direction.
        broken: by control, the share of broken texts.
    """

    def __init__(
        self,
        seed: int,
        n: int,
        effects: Mapping[str, float],
        spread: float = 0.4,
        level: float = -3.5,
        broken: Mapping[str, float] | None = None,
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.n, self.effects, self.spread = n, effects, spread
        self.prompts = {emotion: level + 1.5 * self.rng.normal(size=n) for emotion in effects}
        self.broken_share = dict(broken or {})
        self._scores: dict[tuple[Arm, str], np.ndarray] = {}
        self.filled: dict[Arm, int] = {}

    def fill(self, asked: Mapping[Arm, int]) -> None:
        for arm, count in asked.items():
            self.filled[arm] = max(count, self.filled.get(arm, 0))

    def scores(self, arm: Arm, emotion: str) -> np.ndarray:
        if (arm, emotion) not in self._scores:
            added = 0.0
            if arm != Arm():
                added = self.effects[emotion] if arm == Arm(emotion) else 0.0
                added += self.spread * self.rng.normal()
            noise = 0.8 * self.rng.normal(size=self.n)
            self._scores[arm, emotion] = expit(self.prompts[emotion] + added + noise)[None]
        return self._scores[arm, emotion][:, : self.filled[arm]]

    def broken(self, arm: Arm) -> np.ndarray:
        share = self.broken_share.get(arm.control or "", 0.0)
        return (np.arange(self.filled[arm]) < share * self.filled[arm]).astype(float)

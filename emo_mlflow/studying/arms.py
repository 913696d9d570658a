"""The arms of a study: which conditions each has, and what each injects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from emo_mlflow.directions.controls import covariance_control, isotropic_control, shuffled_control
from emo_mlflow.steering.damage import DamageMeter
from emo_mlflow.steering.edits import Patch, at_dose, make_patch
from emo_mlflow.steering.strength import find_strengths
from emo_mlflow.studying.protocol import BASELINE, Arm, Design
from emo_mlflow.types import Condition, Direction, FloatArray


@dataclass(frozen=True, eq=False)
class Sources:
    """What directions and controls are made from.

    Attributes:
        choice: how directions are fitted, as `fitting.choose_direction` reads it.
        directions: by emotion.
        residual_norms: float32 [n_layers].
        means: float32 [n_texts, n_layers, d_model], of the texts that directions were fitted on.
        labels: each text's emotion.
        groups: as in `readouts.judge`.
        deviations: by layer, float32 [n_tokens, d_model], of the stream at their tokens from its mean; empty without `controls=covariance`.
    """

    choice: str
    directions: Mapping[str, Direction]
    residual_norms: FloatArray
    means: FloatArray
    labels: Sequence[str]
    reference: str | None
    groups: Sequence[int] = ()
    deviations: Mapping[int, FloatArray] = field(default_factory=dict)


@dataclass(eq=False)
class Arms:
    """Makes conditions and patches when they are first asked for; what it makes depends on the design alone.

    Attributes:
        meter: the neutral texts on which damage is measured, and a budget of it is met.
        doses: by condition, the factor that meets the budget, and the damage measured there.
    """

    design: Design
    sources: Sources
    meter: DamageMeter
    patches: dict[str, Patch] = field(default_factory=dict)
    doses: dict[str, tuple[float, float]] = field(default_factory=dict)

    def conditions(self, arm: Arm) -> tuple[Condition, ...]:
        """An arm's conditions, one per depth."""
        if arm == BASELINE:
            return (Condition("baseline"),)
        place = next(place for place in self.design.places if arm.emotion in (None, place.emotion))
        return tuple(
            Condition(
                kind="emotion" if arm.control is None else "random",
                emotion=arm.emotion,
                layer=layer,
                alpha=place.alpha,
                draw=arm.draw,
                seed=None if arm.control is None else self.design.seed,
                scope=self.design.scope,
                patch_window=self.design.patch_window,
                site=self.design.site,
                alpha_unit=place.alpha_unit,
                control=arm.control,
            )
            for layer in place.layers
        )

    def prepare(self, arms: Sequence[Arm]) -> None:
        """Makes the patches of these arms, all strengths together.

        Raises:
            UserError: if a budget of damage cannot be met, or a control cannot be drawn.
        """
        wanted = [(arm, condition) for arm in arms if arm != BASELINE for condition in self.conditions(arm)]
        new = {condition.condition_id: self._unscaled(arm, condition) for arm, condition in wanted if condition.condition_id not in self.patches}
        conditions = {condition.condition_id: condition for _, condition in wanted}
        budgets = {name: float(conditions[name].alpha or 0) for name in new if conditions[name].alpha_unit == "kl"}
        if budgets:
            found = find_strengths(self.meter, [new[name] for name in budgets], list(budgets.values()))
            for name, alpha, kl in zip(budgets, found.alpha, found.kl, strict=True):
                self.doses[name] = (float(alpha), float(kl))
                new[name] = self._scaled(new[name], float(alpha))
        self.patches |= new

    def _scaled(self, patch: Patch, alpha: float) -> Patch:
        steps = np.full(self.design.sequence_length, alpha, np.float32)
        return replace(patch, alpha_by_step=steps)

    def _unscaled(self, arm: Arm, condition: Condition) -> Patch:
        layer = condition.layer
        assert layer is not None
        if condition.alpha_unit == "kl":
            condition = at_dose(condition, 1.0)
        return make_patch(condition, self._vector(arm, layer), None, float(self.sources.residual_norms[layer]), self.design.sequence_length)

    def _vector(self, arm: Arm, layer: int) -> FloatArray:
        """What the arm injects at a layer, float32 [d_model]; a control has the norm of the direction that it is for."""
        own = None if arm.emotion is None else _injected(self.sources.directions[arm.emotion], layer)
        if arm.control is None:
            assert own is not None
            return own
        drawn = self._drawn(arm, layer)
        if own is None:
            return drawn
        return drawn * np.float32(np.linalg.norm(own.astype(np.float64)) / np.linalg.norm(drawn.astype(np.float64)))

    def _drawn(self, arm: Arm, layer: int) -> FloatArray:
        assert arm.draw is not None
        sources, seed = self.sources, self.design.seed
        if arm.control == "isotropic":
            return isotropic_control(sources.means.shape[2], seed=seed, draw=arm.draw)
        if arm.control == "covariance":
            return covariance_control(sources.deviations[layer], seed=seed, draw=arm.draw)
        assert arm.emotion is not None
        return shuffled_control(
            sources.choice, sources.means[:, layer], sources.labels, sources.reference, emotion=arm.emotion, seed=seed, draw=arm.draw
        )


def _injected(direction: Direction, layer: int) -> FloatArray:
    """What `add` adds, float32 [d_model]: of a subspace, the mean difference inside it."""
    vector = direction.vectors[layer]
    if direction.basis is None:
        return vector
    basis = direction.basis[layer].astype(np.float64)
    return np.asarray(basis.T @ (basis @ vector), np.float32)

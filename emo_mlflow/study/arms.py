"""The arms of a study: which conditions each has, and what each injects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from emo_mlflow.directions.controls import draw_control
from emo_mlflow.steering.damage import DamageMeter
from emo_mlflow.steering.edits import Patch, at_dose, make_patch
from emo_mlflow.steering.strength import find_strengths
from emo_mlflow.study.protocol import BASELINE, Arm, Design
from emo_mlflow.types import Condition, Direction, FloatArray


@dataclass(frozen=True, eq=False)
class Sources:
    """What directions and controls are made from.

    Attributes:
        directions: by emotion.
        residual_norms: float32 [n_layers].
        means: float32 [n_texts, n_layers, d_model], of the texts that directions were fitted on.
        labels: each text's emotion.
    """

    directions: Mapping[str, Direction]
    residual_norms: FloatArray
    means: FloatArray
    labels: Sequence[str]
    reference: str | None


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
        vector, basis = self._vector(arm, condition)
        assert condition.layer is not None
        if condition.alpha_unit == "kl":
            condition = at_dose(condition, 1.0)
        return make_patch(condition, vector, basis, float(self.sources.residual_norms[condition.layer]), self.design.sequence_length)

    def _vector(self, arm: Arm, condition: Condition) -> tuple[FloatArray, FloatArray | None]:
        layer = condition.layer
        assert layer is not None
        own = None if arm.emotion is None else self.sources.directions[arm.emotion]
        if arm.control is None:
            assert own is not None
            return own.vectors[layer], None if own.basis is None else own.basis[layer]
        assert arm.draw is not None
        drawn = draw_control(
            arm.control,
            self.sources.means[:, layer],
            self.sources.labels,
            self.sources.reference,
            emotion=arm.emotion,
            seed=self.design.seed,
            draw=arm.draw,
        )
        if own is None:
            return drawn, None
        norm = float(np.linalg.norm(own.vectors[layer].astype(np.float64)))
        return (drawn * np.float32(norm / np.linalg.norm(drawn.astype(np.float64)))), None

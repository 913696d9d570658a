"""Budgets of damage (`alpha_unit=kl`) become multiples of the directions, before anything is generated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from emo_mlflow.errors import UserError
from emo_mlflow.models.blocks import BlockStack
from emo_mlflow.models.loading import LoadedModel
from emo_mlflow.settings.sweep import SweepConfig
from emo_mlflow.steering.edits import at_dose
from emo_mlflow.steering.operations import STREAM_EDITS
from emo_mlflow.steering.operations.declaration import nothing
from emo_mlflow.steering.strength import budget_meter, find_strengths
from emo_mlflow.sweeping.grid import direction_patch
from emo_mlflow.types import Condition, Fit


def check_budgets(alpha_unit: str, operation: str) -> None:
    """Refuses a budget for what has no strength.

    Raises:
        UserError: naming the operation.
    """
    if alpha_unit == "kl" and STREAM_EDITS[operation].shift is nothing:
        raise UserError(f"operation={operation} has no strength, so it cannot do a damage that is chosen: leave out alpha_unit=kl")


def find_doses(
    conditions: Sequence[Condition], fit: Fit, config: SweepConfig, loaded: LoadedModel, stack: BlockStack
) -> dict[str, float]:
    """By condition id, the dose at which its direction, or its random one, does the damage that alpha says; of several edits, together.

    It depends on neither positions nor schedule: conditions that differ in these alone have one dose.

    Raises:
        UserError: if a budget cannot be met.
    """
    alike = {condition.condition_id: _alike(condition) for condition in conditions if condition.steers}
    wanted = list(dict.fromkeys(alike.values()))
    patches = [direction_patch(fit, at_dose(condition, 1.0), 1) for condition in wanted]
    boundaries = {edit.boundary for patch in patches for edit in (patch, *patch.then)}
    meter = budget_meter(loaded, stack, boundaries, config.prepend_bos)
    found = find_strengths(meter, patches, [float(condition.alpha or 0) for condition in wanted])
    doses = dict(zip(wanted, found.alpha.tolist(), strict=True))
    return {condition_id: doses[condition] for condition_id, condition in alike.items()}


def _alike(condition: Condition) -> Condition:
    return replace(condition, scope="generated", patch_window=None, alpha_schedule="constant")

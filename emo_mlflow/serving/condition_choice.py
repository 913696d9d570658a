"""Which condition of a sweep a steered model gets, and what is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from emo_mlflow.errors import UserError
from emo_mlflow.scoring.broken import breaks_text
from emo_mlflow.scoring.targets import expected_sign, target_metric
from emo_mlflow.settings.scopes import scope_and_windows
from emo_mlflow.sweeping.results import condition_of
from emo_mlflow.sweeping.schemas import FLUENCY
from emo_mlflow.types import Condition, Scope

# What an experimenter may name of a condition; the rest holds for a whole sweep.
NAMED = ("layer", "alpha", "scope", "patch_window")


@dataclass(frozen=True)
class Wanted:
    """What was asked for; None leaves the choice to the sweep's results."""

    emotion: str | None = None
    layer: int | None = None
    alpha: float | None = None
    scope: Scope | None = None
    patch_window: int | None = None


@dataclass(frozen=True)
class Choice:
    """A condition and why it is this one.

    Attributes:
        reason: one clause for a person.
        effects: mean difference from the baseline by metric; empty for a condition that the sweep did not run.
    """

    condition: Condition
    reason: str
    effects: Mapping[str, float] = field(default_factory=dict)


def choose(
    wanted: Wanted, config: Mapping[str, Any], n_layers: int, conditions: pd.DataFrame, effects: pd.DataFrame
) -> Choice:
    """The condition that was named, or else the sweep's best of those that fit.

    The best is the one that moves the emotion's own label most, the way it should (`targets.expected_sign`), without breaking the text
    (`scoring.broken` says when it does).

    Args:
        config, conditions, effects: of the sweep.

    Raises:
        UserError: for an emotion, layer or window that cannot be; or if the sweep has no best condition.
    """
    table = conditions[conditions["kind"] == "emotion"]
    emotion = _emotion(wanted.emotion, list(dict.fromkeys(table["emotion"])))
    if wanted.layer is not None and not 0 <= wanted.layer < n_layers:
        raise UserError(f"layer {wanted.layer} does not exist: the model has layers 0 to {n_layers - 1}")
    table = table[table["emotion"] == emotion]
    fits = table
    for name in NAMED:
        if (value := getattr(wanted, name)) is not None:
            fits = fits[fits[name] == value]
    if not len(fits):
        return Choice(_unmeasured(emotion, wanted, config, table), "asked for; the sweep did not run this condition")
    if len(fits) == 1:
        row, reason = fits.iloc[0], "the only one that fits" if len(table) == 1 else "asked for"
    else:
        row, reason = _best(emotion, fits, effects, config["operation"])
    return measured(row.to_dict(), reason, effects)


def measured(row: Mapping[Any, Any], reason: str, effects: pd.DataFrame) -> Choice:
    """A row of the sweep's conditions as a choice.

    Raises:
        UserError: if this version of the package would run it under another id, so that it is not known to be the same.
    """
    condition = condition_of(row)
    if condition.edits:
        raise UserError(f"this condition has several edits ({condition.edits}), which a steered model does not have: name a condition of one")
    if condition.condition_id != row["condition_id"]:
        raise UserError(
            f"the sweep has this condition as {row['condition_id']}, and this version of emo_mlflow as {condition.condition_id}: "
            "install the version that made the sweep (its tag emo.version)"
        )
    own = effects[effects["condition_id"] == row["condition_id"]]
    known = dict(zip(own["metric"], own["mean_diff"].astype(float), strict=True))
    return Choice(condition, reason, known)


def recommended(emotion: str | None, table: pd.DataFrame) -> tuple[str, str]:
    """The condition id that a comparison recommends for one sweep, and why.

    Args:
        table: the comparison's rows of `recommendations` for that sweep.

    Raises:
        UserError: if it recommends none for the emotion.
    """
    emotion = _emotion(emotion, list(table["emotion"]))
    row = table[table["emotion"] == emotion].iloc[0]
    if not isinstance(row.get("condition_id"), str):
        raise UserError(
            f"the comparison recommends no condition for {emotion} ({row['reason']}, of {row['candidates']} that were tried): "
            "name one with --layer and --alpha, without --comparison"
        )
    return row["condition_id"], f"recommended by the comparison: {row['reason']}, {row['target']} {row['gain']:+.2f}"


def _emotion(wanted: str | None, there: list[str]) -> str:
    if wanted is None and len(there) == 1:
        return there[0]
    if wanted not in there:
        problem = "which emotion" if wanted is None else f"there is no emotion {wanted!r}"
        raise UserError(f"{problem}: choose --emotion {', '.join(there)}")
    return str(wanted)


def _best(emotion: str, fits: pd.DataFrame, effects: pd.DataFrame, operation: str) -> tuple[pd.Series, str]:
    """Of the conditions that should raise the emotion's own label, or lower it if none should, the one that does most."""
    signs = pd.Series([expected_sign(operation, float(alpha)) for alpha in fits["alpha"]], index=fits["condition_id"])
    sign = int(signs.max())
    fits = fits[(signs == sign).to_numpy()]
    wide = effects[effects["condition_id"].isin(fits["condition_id"])].pivot(
        index="condition_id", columns="metric", values="mean_diff"
    )
    target = target_metric(emotion, set(wide.columns))
    tried = ", ".join(f"{name} {_listed(fits[name])}" for name in NAMED if fits[name].nunique() > 1)
    if target is None:
        raise UserError(
            f"no score of this sweep is {emotion}'s own, so it has no best condition: name one with --layer and --alpha ({tried})"
        )
    whole = wide[~breaks_text(wide[FLUENCY["broken"]])]
    gains, moves = sign * whole[target].dropna(), "raises" if sign > 0 else "lowers"
    if not len(gains) or gains.max() <= 0:
        broken = len(wide) - len(whole)
        raise UserError(
            f"no condition of {emotion} {moves} {target} without breaking the text ({len(wide)} tried, {broken} break it): "
            f"name one with --layer and --alpha all the same ({tried})"
        )
    best = str(gains.index[int(np.argmax(gains.to_numpy()))])
    row = fits[fits["condition_id"] == best].iloc[0]
    return (
        row,
        f"{moves} {target} most of {len(wide)} conditions ({sign * gains.max():+.2f}, not tested: emo-mlflow compare does)",
    )


def _listed(column: pd.Series) -> str:
    return ",".join(f"{value:g}" if isinstance(value, float) else str(value) for value in sorted(set(column.dropna())))


def _unmeasured(emotion: str, wanted: Wanted, config: Mapping[str, Any], table: pd.DataFrame) -> Condition:
    if wanted.layer is None or wanted.alpha is None:
        swept = "; ".join(f"{name} {_listed(table[name])}" for name in NAMED if table[name].notna().any())
        raise UserError(f"the sweep has no such condition ({swept}): for another, give both --layer and --alpha")
    scope, windows = scope_and_windows(wanted.scope or config["scope"], [wanted.patch_window or int(config["patch_window"][0])])
    if scope != "window" and wanted.patch_window is not None:
        raise UserError(f"patch_window={wanted.patch_window} needs scope window; this is scope {scope}")
    another = condition_of(table.iloc[0].to_dict())
    return replace(another, layer=wanted.layer, alpha=wanted.alpha, scope=scope, patch_window=windows[0])

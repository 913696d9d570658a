"""What a person wants to know first of a sweep: per emotion, where its direction acted most, and whether random ones did too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from emo_mlflow.scoring.targets import expected_sign, target_metric
from emo_mlflow.sweep.results import SweepResult, controlled

NLL = "fluency.nll"


@dataclass(frozen=True)
class Finding:
    """An emotion's strongest condition.

    Attributes:
        head: the head that was replaced; None for a direction.
        metric: the emotion's own label, or else the metric that moved most (`chosen` is then true).
        difference: mean over prompts of patched minus baseline.
        randoms: the same difference of every random control of the condition.
        nll: mean per-token NLL under the unpatched model, patched; `nll_baseline` without intervention.
    """

    emotion: str
    condition_id: str
    layer: int
    head: int | None
    alpha: float
    window: int | None
    metric: str
    chosen: bool
    n: int
    baseline: float
    patched: float
    difference: float
    d_z: float
    randoms: tuple[float, ...]
    nll: float
    nll_baseline: float


def effect_table(result: SweepResult) -> pd.DataFrame:
    """Effects with the columns of their conditions."""
    return result.effects.merge(result.conditions, on="condition_id", validate="many_to_one")


def findings(result: SweepResult) -> list[Finding]:
    """The strongest condition of every emotion, by the largest mean difference of its target metric, in the direction expected."""
    table, sign = effect_table(result), expected_sign(result.config.operation)
    return [_finding(emotion, table, sign) for emotion in dict.fromkeys(table.loc[table["kind"] == "emotion", "emotion"])]


def _finding(emotion: str, table: pd.DataFrame, sign: int) -> Finding:
    own = table[table["emotion"] == emotion]
    effects = own[own["kind"] == "emotion"]
    target = target_metric(emotion, set(effects["metric"]))
    scores = effects[~effects["metric"].str.startswith("fluency.")]
    moved = scores["metric"].iloc[int(scores["d_z"].abs().fillna(0).to_numpy().argmax())]
    metric = target or str(moved)
    candidates = effects[effects["metric"] == metric]
    size = sign * candidates["mean_diff"] if target else candidates["mean_diff"].abs()
    best: Mapping[Any, Any] = candidates.iloc[int(size.fillna(-np.inf).to_numpy().argmax())].to_dict()
    controls = own[(own["kind"] == "random") & (own["metric"] == metric)].to_dict("records")
    nll = effects[(effects["condition_id"] == best["condition_id"]) & (effects["metric"] == NLL)].iloc[0].to_dict()
    return Finding(
        emotion=emotion,
        condition_id=str(best["condition_id"]),
        layer=int(best["layer"]),
        head=None if pd.isna(best["head"]) else int(best["head"]),
        alpha=float(best["alpha"]),
        window=None if pd.isna(best["patch_window"]) else int(best["patch_window"]),
        metric=metric,
        chosen=target is None,
        n=int(best["n"]),
        baseline=float(best["mean_baseline"]),
        patched=float(best["mean_patched"]),
        difference=float(best["mean_diff"]),
        d_z=float(best["d_z"]),
        randoms=tuple(float(row["mean_diff"]) for row in controls if controlled(row) == controlled(best)),
        nll=float(nll["mean_patched"]),
        nll_baseline=float(nll["mean_baseline"]),
    )


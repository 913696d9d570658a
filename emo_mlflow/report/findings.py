"""What a person wants to know first of a sweep: per emotion, where its direction acted most, and whether random ones did too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from emo_mlflow.results import SweepResult
from emo_mlflow.targets import target_metric

SETTING = ["emotion", "layer", "alpha", "patch_window"]
NLL = "fluency.nll"


@dataclass(frozen=True)
class Finding:
    """An emotion's strongest condition.

    Attributes:
        metric: the emotion's own label, or else the metric that moved most (`chosen` is then true).
        difference: mean over prompts of patched minus baseline.
        randoms: the same difference of every random control of the condition.
        nll: mean per-token NLL under the unpatched model, patched; `nll_baseline` without intervention.
    """

    emotion: str
    condition_id: str
    layer: int
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
    """The strongest condition of every emotion, by the largest mean difference of its target metric."""
    table = effect_table(result)
    return [_finding(emotion, table) for emotion in dict.fromkeys(table.loc[table["kind"] == "emotion", "emotion"])]


def _finding(emotion: str, table: pd.DataFrame) -> Finding:
    own = table[table["emotion"] == emotion]
    effects = own[own["kind"] == "emotion"]
    target = target_metric(emotion, set(effects["metric"]))
    scores = effects[~effects["metric"].str.startswith("fluency.")]
    moved = scores["metric"].iloc[int(scores["d_z"].abs().fillna(0).to_numpy().argmax())]
    metric = target or str(moved)
    candidates = effects[effects["metric"] == metric]
    size = candidates["mean_diff"] if target else candidates["mean_diff"].abs()
    best: Mapping[Any, Any] = candidates.iloc[int(size.fillna(-np.inf).to_numpy().argmax())].to_dict()
    same = own[
        (own["layer"] == best["layer"])
        & (own["alpha"] == best["alpha"])
        & _equal(own["patch_window"], best["patch_window"])
    ]
    randoms = same[(same["kind"] == "random") & (same["metric"] == metric)]["mean_diff"]
    nll = effects[(effects["condition_id"] == best["condition_id"]) & (effects["metric"] == NLL)].iloc[0].to_dict()
    return Finding(
        emotion=emotion,
        condition_id=str(best["condition_id"]),
        layer=int(best["layer"]),
        alpha=float(best["alpha"]),
        window=None if pd.isna(best["patch_window"]) else int(best["patch_window"]),
        metric=metric,
        chosen=target is None,
        n=int(best["n"]),
        baseline=float(best["mean_baseline"]),
        patched=float(best["mean_patched"]),
        difference=float(best["mean_diff"]),
        d_z=float(best["d_z"]),
        randoms=tuple(float(value) for value in randoms),
        nll=float(nll["mean_patched"]),
        nll_baseline=float(nll["mean_baseline"]),
    )


def _equal(column: pd.Series, value: Any) -> pd.Series:
    return column.isna() if pd.isna(value) else column == value

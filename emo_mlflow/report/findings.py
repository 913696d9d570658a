"""What a person wants to know first of a sweep: per emotion, where its direction acted most, and whether random ones did too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from emo_mlflow.scoring.broken import breaks_text
from emo_mlflow.scoring.targets import expected_sign, target_metric
from emo_mlflow.statistics import searched_p
from emo_mlflow.statistics.intervals import LEAST
from emo_mlflow.statistics.moments import LEVEL, Floats
from emo_mlflow.sweeping.results import SweepResult, controlled
from emo_mlflow.sweeping.schemas import FLUENCY
from emo_mlflow.types import ASKING

SMALLEST_EFFECT = 0.02  # of a probability; a smaller change is not called one
BROKEN = FLUENCY["broken"]


@dataclass(frozen=True)
class Finding:
    """An emotion's strongest condition.

    Attributes:
        head: the head that was replaced; None for a direction.
        metric: the emotion's own label, or else the metric that moved most (`chosen` is then true).
        difference: mean over prompts of patched minus baseline.
        candidates: conditions, or heads, of which this is the strongest.
        randoms: the same difference of every random control of the condition.
        searched: how many random controls were tried wherever the emotion was.
        p: of the largest difference among them, if each searches as the emotion did (`statistics.searched_p`); NaN without
            controls, or where the metric was chosen.
        broken: mean probability that a text is broken (`scoring.broken`), patched; `broken_baseline` without intervention.
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
    candidates: int
    randoms: tuple[float, ...]
    searched: int
    p: float
    broken: float
    broken_baseline: float

    @property
    def interval(self) -> tuple[float, float]:
        """Student's 95% interval of the difference; NaN for fewer prompts than have one, or where all differences are the same.

        It does not know that the condition was chosen because its difference is large.
        """
        if self.n < LEAST or not self.d_z:  # d_z is NaN without spread
            return float("nan"), float("nan")
        half = float(stats.t.ppf((1 + LEVEL) / 2, self.n - 1)) * self.difference / self.d_z / np.sqrt(self.n)
        return self.difference - half, self.difference + half

    @property
    def price(self) -> str:
        """How probable broken text is, without and with the intervention; empty if texts have no likelihoods."""
        return "" if np.isnan(self.broken) else f"{self.broken_baseline:.0%} to {self.broken:.0%}"

    @property
    def breaks_text(self) -> bool:
        """Whether it raises the share of broken text by more than `scoring.broken` allows."""
        return bool(breaks_text(self.broken - self.broken_baseline))


def effect_table(result: SweepResult) -> pd.DataFrame:
    """Effects with the columns of their conditions; of random controls only what they are read for, their emotion's own label and broken text."""
    table = result.effects_of(("emotion", *ASKING))
    metrics = set(table["metric"])
    compared = {emotion: target_metric(emotion, metrics) for emotion in table["emotion"].unique()}
    controls = (result.effects_of(("random",), emotion, {BROKEN, target or BROKEN}) for emotion, target in compared.items())
    return pd.concat([table, *controls], ignore_index=True)


def findings(result: SweepResult) -> list[Finding]:
    """The strongest condition of every emotion, by the largest mean difference of its target metric, in the direction expected."""
    table = effect_table(result)
    return [_finding(result, emotion, table) for emotion in dict.fromkeys(table.loc[table["kind"] == "emotion", "emotion"])]


def _finding(result: SweepResult, emotion: str, table: pd.DataFrame) -> Finding:
    own = table[table["emotion"] == emotion]
    effects = own[own["kind"] == "emotion"]
    target = target_metric(emotion, set(effects["metric"]))
    scores = effects[~effects["metric"].str.startswith("fluency.")]
    moved = scores["metric"].iloc[int(scores["mean_diff"].abs().fillna(0).to_numpy().argmax())]
    metric = target or str(moved)
    measured = own[own["metric"] == metric]
    if target:
        sign = measured["alpha"].astype(float).fillna(1.0).map(partial(expected_sign, result.config.operation))
        measured = measured.assign(size=sign * measured["mean_diff"])[sign == sign.max()]
    else:
        measured = pd.concat([measured, result.effects_of(("random",), emotion, (metric,))])
        measured = measured.assign(size=measured["mean_diff"].abs())
    candidates, controls = (measured[measured["kind"] == kind] for kind in ("emotion", "random"))
    best: Mapping[Any, Any] = candidates.iloc[int(candidates["size"].fillna(-np.inf).to_numpy().argmax())].to_dict()
    fluency = effects[(effects["condition_id"] == best["condition_id"]) & (effects["metric"] == BROKEN)].iloc[0].to_dict()
    largest = _of_searches(controls)
    searchers = 1 if candidates["head"].isna().all() else len(candidates[["layer", "head"]].drop_duplicates())
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
        candidates=len(candidates),
        randoms=tuple(float(row["mean_diff"]) for row in controls.to_dict("records") if controlled(row) == controlled(best)),
        searched=len(largest),
        p=searched_p(float(best["size"]), largest, searchers) if target else float("nan"),
        broken=float(fluency["mean_patched"]),
        broken_baseline=float(fluency["mean_baseline"]),
    )


def _of_searches(controls: pd.DataFrame) -> Floats:
    """The largest size of each random control that was measured wherever any was."""
    sizes = controls.dropna(subset=["size"]).groupby("draw")["size"].agg(["max", "count"])
    return sizes.loc[sizes["count"] == controls.groupby("draw").size().max(), "max"].to_numpy(float)

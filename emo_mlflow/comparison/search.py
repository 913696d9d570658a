"""An emotion's conditions against random directions that search as many: what makes the best of a search a fair test."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from emo_mlflow.comparison.responses import Responses
from emo_mlflow.scoring.broken import breaks_text
from emo_mlflow.scoring.targets import target_metric
from emo_mlflow.statistics import searched_p
from emo_mlflow.statistics.moments import Floats, Mask, divide
from emo_mlflow.sweeping.schemas import FLUENCY

COLUMNS = [
    "condition_id",
    "rise",
    "asked",
    "searchers",
    "searched_draws",
    "p_searched",
    "smallest_searched",
    "draws_broken",
]


@dataclass(frozen=True, eq=False)
class Changes:
    """What each condition of a sweep does on average over prompts, in the order of its conditions.

    Attributes:
        rise: of the emotion's own label, in the direction expected; NaN where nothing was measured.
        broken: where the text breaks.
    """

    rise: Floats
    broken: Mask


def changes(sweep: Responses, target: str) -> Changes:
    """Changes of a target's label and of fluency under every condition, random ones too."""
    return Changes(sweep.source.signs(sweep.conditions) * _mean(sweep, target), breaks_text(_mean(sweep, FLUENCY["broken"])))


def _mean(sweep: Responses, metric: str) -> Floats:
    values = sweep.change[:, :, sweep.metric(metric)].astype(float)
    present = ~np.isnan(values)
    return divide(np.where(present, values, 0.0).sum(axis=1), present.sum(axis=1))


def search(sweeps: list[Responses]) -> pd.DataFrame:
    """Each condition with a target against the best condition of each of its random controls, a row per condition.

    Only conditions that should raise the label are asked, if there are any; the others, of a negative alpha, have no p. A random
    direction's best is its largest rise of all places and strengths that the emotion's direction was tried at, among those where it
    leaves the text whole, as the emotion's has to. p = (1 + #{best of a draw >= rise}) / (draws + 1) holds over the whole search
    (Westfall and Young 1993), whatever the conditions have in common, if the emotion's direction is as good as a random one. Of
    heads, each is one candidate of several (`statistics.searched_p`).

    Returns:
        model, condition_id; rise (of the label, in the direction expected), asked, searchers (candidates of the search: 1, or the
        number of heads), searched_draws (tried at every condition asked), p_searched, smallest_searched (the least that it can
        be); draws_broken: the share of the condition's own controls whose text breaks.
    """
    tables = []
    for sweep in sweeps:
        for emotion in sweep.conditions["emotion"].dropna().unique():
            target = target_metric(emotion, sweep.metrics)
            if target is not None:
                tables.append(_of_emotion(sweep, emotion, target).assign(model=sweep.source.label))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["model", *COLUMNS])


def _of_emotion(sweep: Responses, emotion: str, target: str) -> pd.DataFrame:
    rows = sweep.rows("emotion")
    rows = rows[sweep.conditions["emotion"].to_numpy()[rows] == emotion]
    signs = sweep.source.signs(sweep.conditions.iloc[rows])
    asked = signs == signs.max()
    found = changes(sweep, target)
    controls = _controls(sweep, rows[asked], found)
    heads = sweep.conditions.iloc[rows[asked]][["layer", "head"]].drop_duplicates()
    searchers = 1 if sweep.source.phase == "residual" else len(heads)
    p = [searched_p(found.rise[row], controls, searchers) if ask else np.nan for row, ask in zip(rows, asked, strict=True)]
    broken = [found.broken[sweep.draws[row]].mean() if len(sweep.draws[row]) else np.nan for row in rows]
    return pd.DataFrame(
        {
            "condition_id": sweep.conditions["condition_id"].to_numpy()[rows],
            "rise": found.rise[rows],
            "asked": asked,
            "searchers": searchers,
            "searched_draws": len(controls),
            "p_searched": p,
            "smallest_searched": searchers / (searchers + len(controls)) if len(controls) else np.nan,
            "draws_broken": broken,
        },
        columns=COLUMNS,
    )


def _controls(sweep: Responses, rows: np.ndarray, found: Changes) -> Floats:
    """The best rise of each random control over the places of the given conditions; -inf where it breaks the text everywhere.

    A control that was not measured at one of the places is none: it would have searched less.
    """
    places = {tuple(sweep.draws[row]): sweep.draws[row] for row in rows}
    draws = sweep.conditions["draw"]
    best: dict[int, list[float]] = {}
    for positions in places.values():
        for position in positions:
            rise = found.rise[position]
            whole = rise if np.isnan(rise) or not found.broken[position] else -np.inf
            best.setdefault(int(draws.iloc[position]), []).append(whole)
    complete = [max(rises) for rises in best.values() if len(rises) == len(places) and not np.isnan(rises).any()]
    return np.array(complete, float)

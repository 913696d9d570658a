"""What an effect costs: how much text it breaks."""

from __future__ import annotations

import numpy as np
import pandas as pd

from emo_mlflow.comparison.responses import SETTING, Responses
from emo_mlflow.scoring.broken import breaks_text
from emo_mlflow.scoring.targets import target_metric
from emo_mlflow.sweeping.schemas import FLUENCY

KEYS = ["model", *SETTING]
RANDOM = [
    "n_draws",
    "draws_mean",
    "draws_min",
    "draws_max",
    "beyond_mean",
    "beyond_mean_low",
    "beyond_mean_high",
    "smallest_p",
]


def tradeoff(sweeps: list[Responses], effects: pd.DataFrame, specific: pd.DataFrame) -> pd.DataFrame:
    """A row per condition whose emotion has a target metric.

    Args:
        effects, specific: what `effect_sizes` and `specificity` give for the same sweeps.

    Returns:
        KEYS, condition_id, depth, target; effect, low, high, d_z, p (sign flips), p_holm, p_bh of the target; n_draws, draws_mean,
        draws_min, draws_max, beyond_mean, beyond_mean_low, beyond_mean_high, p_random, smallest_p (`specific_effects`); sign:
        1 where the label is expected to rise, -1 where to fall (`targets.expected_sign`); gain = sign times beyond_mean, or times
        effect where there are no draws;
        broken_rise: the change of `fluency.broken`; broken: whether that breaks the text (`scoring.broken`); on_front: no condition of the
        same model and emotion is at least as good in gain and broken_rise and better in one.
    """
    tables = []
    for sweep in sweeps:
        signs = pd.Series(sweep.source.signs(sweep.conditions), index=sweep.conditions["condition_id"])
        for emotion in sweep.conditions["emotion"].dropna().unique():
            target = target_metric(emotion, sweep.metrics)
            own = (effects["model"] == sweep.source.label) & (effects["emotion"] == emotion)
            if target is not None:
                tables.append(_with_front(_of_emotion(effects[own], specific[own], target, signs)))
    empty = _with_front(_of_emotion(effects.iloc[:0], specific.iloc[:0], "", pd.Series(dtype=int)))
    return pd.concat(tables, ignore_index=True) if tables else empty


def _of_emotion(effects: pd.DataFrame, specific: pd.DataFrame, target: str, signs: pd.Series) -> pd.DataFrame:
    own = effects[effects["metric"] == target].set_index("condition_id")
    random = specific[specific["metric"] == target].set_index("condition_id")
    fluency = effects[effects["metric"] == FLUENCY["broken"]].set_index("condition_id")
    table = own[[*KEYS, "depth", "d_z", "p_holm", "p_bh"]].assign(
        target=target, effect=own["mean_diff"], low=own["diff_low"], high=own["diff_high"], p=own["p_permutation"]
    )
    table = table.join(random[RANDOM]).assign(p_random=random["p"])
    table["sign"] = signs.reindex(table.index)
    table["gain"] = table["sign"] * table["beyond_mean"].fillna(table["effect"])
    table["broken_rise"] = fluency["mean_diff"]
    table["broken"] = breaks_text(table["broken_rise"])
    return table.reset_index()


def _with_front(table: pd.DataFrame) -> pd.DataFrame:
    """Marks the conditions that no other dominates."""
    costs = np.column_stack([-table["gain"], table["broken_rise"]])
    known = ~np.isnan(costs).any(axis=1)
    no_worse = (costs[:, None] <= costs[None]).all(axis=2)
    better = (costs[:, None] < costs[None]).any(axis=2)
    return table.assign(on_front=known & ~(no_worse & better).any(axis=0))


def fluency_breaks(table: pd.DataFrame) -> pd.DataFrame:
    """The alpha nearest to 0 on either side at which text breaks, NaN if none, a row per series of strengths."""
    keys = ["model", "emotion", "layer", "head", "scope", "patch_window"]
    if not len(table):
        return pd.DataFrame(columns=[*keys, "breaks_below", "breaks_above"])
    broken = table[table["broken"]]
    above = broken[broken["alpha"] > 0].groupby(keys, dropna=False)["alpha"].min().rename("breaks_above")
    below = broken[broken["alpha"] < 0].groupby(keys, dropna=False)["alpha"].max().rename("breaks_below")
    series = table[keys].drop_duplicates()
    return series.merge(below.reset_index(), on=keys, how="left").merge(above.reset_index(), on=keys, how="left")

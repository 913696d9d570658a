"""What an effect costs in fluency."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from emo_mlflow.comparison.responses import FLUENCY, SETTING, Responses
from emo_mlflow.scoring.targets import target_metric

# Text counts as broken when the unpatched model finds a new token e times less likely on average, or when a fifth of
# its bigrams has become repetition; greedy texts that break do either within one step of alpha.
NLL_LIMIT = 1.0
DISTINCT_2_LIMIT = 0.2

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
        nll_rise, distinct_2_drop; broken: empty, "nll" or "repeats"; on_front: no condition of the same model and
        emotion is at least as good in gain, nll_rise and distinct_2_drop and better in one.
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
    changes = {
        name: effects[effects["metric"] == metric].set_index("condition_id")["mean_diff"]
        for name, metric in FLUENCY.items()
    }
    table = own[[*KEYS, "depth", "d_z", "p_holm", "p_bh"]].assign(
        target=target, effect=own["mean_diff"], low=own["diff_low"], high=own["diff_high"], p=own["p_permutation"]
    )
    table = table.join(random[RANDOM]).assign(p_random=random["p"])
    table["sign"] = signs.reindex(table.index)
    table["gain"] = table["sign"] * table["beyond_mean"].fillna(table["effect"])
    table["nll_rise"], table["distinct_2_drop"] = changes["nll"], -changes["distinct_2"]
    table["broken"] = how_broken(table["nll_rise"], table["distinct_2_drop"])
    return table.reset_index()


def how_broken(nll_rise: npt.ArrayLike, distinct_2_drop: npt.ArrayLike) -> npt.NDArray[np.str_]:
    """By condition: "repeats" or "nll" if it breaks the text, and otherwise an empty text."""
    repeats, unlikely = np.asarray(distinct_2_drop) > DISTINCT_2_LIMIT, np.asarray(nll_rise) > NLL_LIMIT
    return np.select([repeats, unlikely], ["repeats", "nll"], "")


def _with_front(table: pd.DataFrame) -> pd.DataFrame:
    """Marks the conditions that no other dominates."""
    costs = np.column_stack([-table["gain"], table["nll_rise"], table["distinct_2_drop"]])
    known = ~np.isnan(costs).any(axis=1)
    no_worse = (costs[:, None] <= costs[None]).all(axis=2)
    better = (costs[:, None] < costs[None]).any(axis=2)
    return table.assign(on_front=known & ~(no_worse & better).any(axis=0))


def fluency_breaks(table: pd.DataFrame) -> pd.DataFrame:
    """The alpha nearest to 0 on either side at which text breaks, NaN if none, a row per series of strengths."""
    keys = ["model", "emotion", "layer", "head", "scope", "patch_window"]
    if not len(table):
        return pd.DataFrame(columns=[*keys, "breaks_below", "breaks_above"])
    broken = table[table["broken"] != ""]
    above = broken[broken["alpha"] > 0].groupby(keys, dropna=False)["alpha"].min().rename("breaks_above")
    below = broken[broken["alpha"] < 0].groupby(keys, dropna=False)["alpha"].max().rename("breaks_below")
    series = table[keys].drop_duplicates()
    return series.merge(below.reset_index(), on=keys, how="left").merge(above.reset_index(), on=keys, how="left")

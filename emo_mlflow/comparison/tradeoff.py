"""What an effect costs in fluency, and which condition to use."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from emo_mlflow.comparison.families import SIGNIFICANT
from emo_mlflow.comparison.responses import FLUENCY, SETTING, Responses
from emo_mlflow.scoring.targets import target_metric

# Text counts as broken when the unpatched model finds a new token e times less likely on average, or when a fifth of
# its bigrams has become repetition; greedy texts that break do either within one step of alpha.
NLL_LIMIT = 1.0
DISTINCT_2_LIMIT = 0.2

KEYS = ["model", *SETTING]


def tradeoff(sweeps: list[Responses], effects: pd.DataFrame, specific: pd.DataFrame) -> pd.DataFrame:
    """A row per condition whose emotion has a target metric.

    Args:
        effects, specific: what `effect_sizes` and `specificity` give for the same sweeps.

    Returns:
        KEYS, condition_id, depth, target; effect, low, high (BCa), d_z, p_t, p_bh of the target; n_draws, specific,
        specific_low, specific_high, p_random, smallest_p; gain = specific, or effect where there are no draws, with the
        sign in which the label is expected to move (`targets.expected_sign`);
        nll_rise, distinct_2_drop; broken: empty, "nll" or "repeats"; on_front: no condition of the same model and
        emotion is at least as good in gain, nll_rise and distinct_2_drop and better in one.
    """
    tables = []
    for sweep in sweeps:
        for emotion in sweep.conditions["emotion"].dropna().unique():
            target = target_metric(emotion, sweep.metrics)
            own = (effects["model"] == sweep.source.label) & (effects["emotion"] == emotion)
            if target is not None:
                tables.append(_with_front(_of_emotion(effects[own], specific[own], target, sweep.source.sign)))
    empty = _with_front(_of_emotion(effects.iloc[:0], specific.iloc[:0], "", 1))
    return pd.concat(tables, ignore_index=True) if tables else empty


def _of_emotion(effects: pd.DataFrame, specific: pd.DataFrame, target: str, sign: int) -> pd.DataFrame:
    own = effects[effects["metric"] == target].set_index("condition_id")
    random = specific[specific["metric"] == target].set_index("condition_id")
    changes = {
        name: effects[effects["metric"] == metric].set_index("condition_id")["mean_diff"]
        for name, metric in FLUENCY.items()
    }
    table = own[[*KEYS, "depth", "d_z", "p_t", "p_bh"]].assign(
        target=target, effect=own["mean_diff"], low=own["diff_bca_low"], high=own["diff_bca_high"]
    )
    table = table.join(random[["n_draws", "specific", "specific_low", "specific_high", "smallest_p"]])
    table["p_random"] = random["p"]
    table["gain"] = sign * table["specific"].fillna(table["effect"])
    table["nll_rise"], table["distinct_2_drop"] = changes["nll"], -changes["distinct_2"]
    table["broken"] = how_broken(table["nll_rise"], table["distinct_2_drop"])
    return table.reset_index()


def how_broken(nll_rise: pd.Series, distinct_2_drop: pd.Series) -> npt.NDArray[np.str_]:
    """By condition: "repeats" or "nll" if it breaks the text, and otherwise an empty text."""
    return np.select([distinct_2_drop > DISTINCT_2_LIMIT, nll_rise > NLL_LIMIT], ["repeats", "nll"], "")


def _with_front(table: pd.DataFrame) -> pd.DataFrame:
    """Marks the conditions that no other dominates."""
    costs = np.column_stack([-table["gain"], table["nll_rise"], table["distinct_2_drop"]])
    known = ~np.isnan(costs).any(axis=1)
    no_worse = (costs[:, None] <= costs[None]).all(axis=2)
    better = (costs[:, None] < costs[None]).any(axis=2)
    return table.assign(on_front=known & ~(no_worse & better).any(axis=0))


def recommendations(sweeps: list[Responses], table: pd.DataFrame) -> pd.DataFrame:
    """A row per model and emotion: the condition to use, and why, or why none.

    Among the conditions that keep the text whole and raise the target beyond every random draw, the significant ones
    (BH) come first, and then the largest gain. Without draws, significance alone decides, and the reason says so.

    Returns:
        model, emotion, candidates (conditions tried), n_broken (of those); reason: "specific", "beyond_random",
        "untested" (no draws), or for no condition "within_random", "no_rise", "all_broken", "no_target"; and the
        columns of `tradeoff`, empty where no condition is recommended.
    """
    rows = []
    for sweep in sweeps:
        for emotion in sweep.conditions["emotion"].dropna().unique():
            own = table[(table["model"] == sweep.source.label) & (table["emotion"] == emotion)]
            chosen, reason = _choose(own, sweep.source.sign)
            row = {} if chosen is None else own.loc[chosen].drop(["model", "emotion", "broken"]).to_dict()
            key = {"model": sweep.source.label, "emotion": emotion, "candidates": len(own)}
            rows.append({**key, "n_broken": int((own["broken"] != "").sum()), "reason": reason, **row})
    wanted = [name for name in table.columns if name not in ("model", "emotion", "broken")]
    return pd.DataFrame(rows).reindex(columns=["model", "emotion", "candidates", "n_broken", "reason", *wanted])


def _choose(table: pd.DataFrame, sign: int) -> tuple[int | None, str]:
    if not len(table):
        return None, "no_target"
    whole = table[table["broken"] == ""]
    if not len(whole):
        return None, "all_broken"
    rising = whole[(sign * whole["effect"] > 0) & (whole["gain"] > 0)]
    sure = rising["p_bh"] < SIGNIFICANT
    if (rising["n_draws"] == 0).all():
        return (_best(rising[sure]), "untested") if sure.any() else (None, "no_rise")
    beyond = rising["p_random"] <= rising["smallest_p"]
    for candidates, reason in ((rising[beyond & sure], "specific"), (rising[beyond], "beyond_random")):
        if len(candidates):
            return _best(candidates), reason
    return None, "within_random"


def _best(table: pd.DataFrame) -> int:
    return int(table.index.to_numpy()[table["gain"].to_numpy(float).argmax()])


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

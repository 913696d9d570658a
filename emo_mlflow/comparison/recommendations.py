"""What each emotion's direction was shown to do, and the condition that does it."""

from __future__ import annotations

import numpy as np
import pandas as pd

from emo_mlflow.comparison.families import significant
from emo_mlflow.comparison.responses import Responses
from emo_mlflow.comparison.rows import records
from emo_mlflow.statistics import corrected

MOST_BROKEN = 0.5  # share of a condition's controls whose text breaks, above which they are no control
OF_CASES = ("model", "emotion")  # what can divide cases into families
FIRST = (
    *OF_CASES,
    "candidates",
    "n_broken",
    "reason",
    "searchers",
    "searched_draws",
    "p_specific",
    "p_specific_holm",
    "cases",
)


def recommendations(sweeps: list[Responses], table: pd.DataFrame, family: tuple[str, ...]) -> pd.DataFrame:
    """A row per case, which is a model and an emotion: the condition to use, and why, or why none.

    Args:
        table: what `tradeoff` gives, with the columns of `search`.
        family: columns that divide the tests into families; model and emotion divide the cases.

    Returns:
        model, emotion, candidates (conditions that should raise the label, or lower it if none should), n_broken (of those that break
        the text); reason, of which the first that holds: "no_target", "all_broken"; "specific": the largest rise is more than random
        directions reach that search as much (Holm over the cases); of the rises that are significant against the baseline (Holm
        over its family) the largest, "void" if the same holds but most random directions there break the text, "untested" without
        draws, and otherwise "steers"; "not_shown"; searchers, searched_draws (`search`), p_specific: p_searched of the largest rise,
        p_specific_holm and cases (of the family); and the other columns of `table`, empty where no condition is recommended.
    """
    cases: list[tuple[str, str, pd.DataFrame]] = []
    for sweep in sweeps:
        for emotion in sweep.conditions["emotion"].dropna().unique():
            own = table[(table["model"] == sweep.source.label) & (table["emotion"] == emotion)]
            cases.append((sweep.source.label, emotion, own[own["asked"].astype(bool)]))
    tests = pd.DataFrame([(model, emotion, _p(own)) for model, emotion, own in cases], columns=[*OF_CASES, "p_specific"])
    divided = [column for column in family if column in OF_CASES]
    names = tests[divided].astype(str).agg(", ".join, axis=1) if divided else pd.Series("all", index=tests.index)
    found = corrected(tests["p_specific"], names)
    tests = tests.assign(p_specific_holm=found["p_holm"], cases=found["family_size"])
    wanted = [name for name in table.columns if name not in (*FIRST, "broken", "asked")]
    rows = []
    for (*_, own), test in zip(cases, records(tests), strict=True):
        chosen, reason = _choose(own, bool(significant(test["p_specific_holm"])))
        row = {} if chosen is None else records(own.loc[[chosen], wanted])[0]
        searched = records(own[["searchers", "searched_draws"]])[0] if len(own) else {}
        counts = {"candidates": len(own), "n_broken": int(own["broken"].sum())}
        rows.append({**test, **counts, "reason": reason, **searched, **row})
    # Without it, pandas makes layer 8 of one case 8.0 where another case has none.
    kinds = {name: table[name].dtype for name in ("layer", "head", "patch_window")}
    return pd.DataFrame(rows).reindex(columns=[*FIRST, *wanted]).astype(kinds)


def _p(own: pd.DataFrame) -> float:
    """p of a case: of its largest rise, 1 if nothing rises in whole text, NaN without random directions."""
    if not len(own) or own["searched_draws"].iloc[0] == 0:
        return float("nan")
    best = largest(own)
    return 1.0 if best is None else float(own["p_searched"].to_dict()[best])


def largest(own: pd.DataFrame) -> int | None:
    """The row of the largest rise among the conditions that leave the text whole; None if nothing rises."""
    rises = own.loc[~own["broken"] & (own["rise"] > 0), "rise"]
    return int(rises.index[int(np.argmax(rises.to_numpy(float)))]) if len(rises) else None


def _choose(own: pd.DataFrame, beyond_random: bool) -> tuple[int | None, str]:
    if not len(own):
        return None, "no_target"
    if own["broken"].all():
        return None, "all_broken"
    best, sure = largest(own), largest(own[significant(own["p_holm"])])
    void = bool((own.loc[own.index == best, "draws_broken"] > MOST_BROKEN).any())
    if beyond_random and best is not None and not void:
        return best, "specific"
    if sure is None:
        return None, "not_shown"
    if own["searched_draws"].iloc[0] == 0:
        return sure, "untested"
    return sure, "void" if beyond_random and void else "steers"

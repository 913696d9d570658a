"""A comparison's answer in words. They follow the tests: nothing is called specific that no test of specificity has found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from emo_mlflow.comparison import Comparison
from emo_mlflow.comparison.families import OWN, WHOLE, parse_family, significant
from emo_mlflow.comparison.recommendations import MOST_BROKEN, largest
from emo_mlflow.comparison.rows import records
from emo_mlflow.report.findings import SMALLEST_EFFECT
from emo_mlflow.report.highlights import setting_name
from emo_mlflow.scoring.targets import target_metric
from emo_mlflow.statistics.specificity import SAME
from emo_mlflow.sweeping.schemas import FLUENCY

Words = Mapping[str, str]

# By what is said of a case: the reasons of `recommendations` that come to that.
GROUPS = {
    "specific": ("specific",),
    "steers": ("steers", "void"),
    "untested": ("untested",),
    "not_shown": ("not_shown", "all_broken"),
}
MOST_NAMES = 12


def answer(comparison: Comparison, t: Words) -> list[str]:
    """What each case was shown to do, the largest effect and how likely chance is to give it, the tests, and what the design can see."""
    cases = comparison.tables["recommendations"]
    known = cases[cases["reason"] != "no_target"]
    first = [_verdict(comparison, known, t), _largest(comparison, t)] if len(known) else [t["untargeted"]]
    return [text for text in (*first, *_asking(comparison, t), *_together(comparison, t), _tests(comparison, t), _limits(comparison, t)) if text]


def _asking(comparison: Comparison, t: Words) -> list[str]:
    """Per case and way of asking, whether it does more than the condition of the direction that does most, as the test of their difference says."""
    table = comparison.tables["against_asking"]
    if not len(table):
        return []
    sentences = []
    for (model, emotion, arm), rows in table.groupby(["model", "emotion", "arm"], sort=False):
        own = rows[rows[OWN].astype(bool) & rows["effect_direction"].notna()]
        if not len(own):
            continue
        best = records(own.loc[[own["effect_direction"].idxmax()]])[0]
        broken = rows[(rows["condition_id"] == best["condition_id"]) & (rows["metric"] == FLUENCY["broken"])]
        found = "same" if not significant(best["p_holm"]) else "direction" if best["difference"] > 0 else "asking"
        if max(abs(best["effect_asking"]), abs(best["effect_direction"])) < SMALLEST_EFFECT:
            found = "neither"
        claim = t[f"asking_{found}"].format(least=SMALLEST_EFFECT)
        words = {**best, "case": t["case"].format(model=model, emotion=emotion), "arm": t[f"arm_{arm}"], "claim": claim}
        price = [t["asking_broken"].format(**row) for row in records(broken.dropna(subset=["effect_direction", "effect_asking"]))]
        sentences.append(t["asking"].format(**words, count=len(own), ends=_ends(best, t)) + "".join(price))
    return sentences


def _together(comparison: Comparison, t: Words) -> list[str]:
    """Per combination and own label of either part, whether both do more or less than the sum, where they differ most from it, as the test says."""
    table = comparison.tables["interactions"]
    if not len(table):
        return []
    metrics, sentences = set(table["metric"]), []
    for (model, emotion, first, second), rows in table.groupby(["model", "emotion", "first", "second"], sort=False):
        for metric in dict.fromkeys(target_metric(str(name), metrics) for name in (first, second)):
            own = rows[(rows["metric"] == metric) & rows["p_holm"].notna()]
            if not len(own):
                continue
            best = records(own.loc[[own["interaction"].abs().idxmax()]])[0]
            found = "same" if not significant(best["p_holm"]) else "higher" if best["interaction"] > 0 else "lower"
            if max(abs(best[f"effect_{name}"]) for name in ("first", "second", "both")) < SMALLEST_EFFECT:
                found = "neither"
            words = {**best, "case": t["case"].format(model=model, emotion=emotion), "claim": t[f"together_{found}"].format(least=SMALLEST_EFFECT)}
            sentences.append(t["together"].format(**words, count=len(own), place=setting_name(best, t), ends=_ends(best, t)))
    return sentences


def movement(tables: Sequence[pd.DataFrame], t: Words) -> dict[str, str]:
    """The words for which way the own labels of some rows of `tradeoff` are expected to move."""
    signs = {sign for table in tables for sign in table.loc[table["asked"].astype(bool), "sign"]}
    key = {frozenset({1}): "up", frozenset({-1}): "down"}.get(frozenset(signs), "either")
    return {"rises": t[f"rises_{key}"], "rise": t[f"rise_{key}"]}


def _verdict(comparison: Comparison, known: pd.DataFrame, t: Words) -> str:
    words = movement([comparison.tables["tradeoff"]], t)
    drawn = known["p_specific"].notna().any()
    sentences = []
    for group, reasons in GROUPS.items():
        rows = records(known[known["reason"].isin(reasons)])
        if rows:
            count = {"count": len(rows), "total": len(known), "names": _names(rows, t), "cases": int(known["cases"].max())}
            sentences.append(t[f"verdict_{group}"].format(**count, **words))
        elif group == "specific":
            sentences.append(t["verdict_none" if drawn else "verdict_undrawn"].format(total=len(known), **words))
    return " ".join(sentences)


def _names(rows: Sequence[Mapping[str, Any]], t: Words) -> str:
    """The cases by name; only by emotion where there is one model."""
    named = [t["case"].format(**row) for row in rows[:MOST_NAMES]]
    return t["comma"].join(named) + (t["and_more"].format(count=len(rows) - MOST_NAMES) if len(rows) > MOST_NAMES else "")


def _largest(comparison: Comparison, t: Words) -> str:
    """The largest rise of the cases of which most was shown, and the chance of as much from a random direction."""
    cases, table = comparison.tables["recommendations"], comparison.tables["tradeoff"]
    asked = table[table["asked"].astype(bool)]
    for reasons in GROUPS.values():
        shown = cases[cases["reason"].isin(reasons)][["model", "emotion", "candidates", "p_specific_holm", "cases"]]
        rows = asked.merge(shown, on=["model", "emotion"])
        best = largest(rows)
        if best is not None:
            row = records(rows.loc[[best]])[0]
            words = {**row, **movement([rows.loc[[best]]], t), "ends": _ends(row, t), "place": setting_name(row, t)}
            return t["largest"].format(**words) + _chance(row, t)
    return ""


def _ends(row: Mapping[str, Any], t: Words) -> str:
    return t["no_interval"] if pd.isna(row["low"]) else t["interval"].format(**row)


def _chance(row: Mapping[str, Any], t: Words) -> str:
    """How probable as much is where there is nothing to find."""
    if pd.isna(row["p_searched"]):
        return ""
    draws = int(row["searched_draws"])
    least = t["least"].format(draws=draws) if row["p_searched"] <= row["smallest_searched"] * (1 + SAME) else ""
    counts = {"candidates": int(row["candidates"]), "cases": int(row["cases"])}
    text = t["chance"].format(**counts, p=row["p_searched"], holm=row["p_specific_holm"], least=least)
    broken = row["draws_broken"]
    return text + (t["weak_control"].format(broken=broken) if broken > MOST_BROKEN else "")


def _tests(comparison: Comparison, t: Words) -> str:
    effects, specific = comparison.tables["effect_sizes"], comparison.tables["specificity"]
    counts = {}
    for name, table in (("own", effects[effects[OWN]]), ("other", effects[~effects[OWN]])):
        counts[name] = int(table["p_permutation"].notna().sum())
        counts[f"{name}_holm"] = int(significant(table["p_holm"]).sum())
        counts[f"{name}_bh"] = int(significant(table["p_bh"]).sum())
    text = t["tests"].format(**counts)
    own = specific[specific[OWN] & specific["p"].notna()]
    if len(own):
        beyond = int((own["p"] <= own["smallest_p"] * (1 + SAME)).sum())
        values = {"own": len(own), "beyond": beyond, "chance": round(float(own["smallest_p"].sum()))}
        text += t["tests_random"].format(**values, holm=int(significant(own["p_holm"]).sum()))
    by_columns = t["family_columns"].format(columns=", ".join(comparison.family))
    return text + (t["family_comparison"] if comparison.family == parse_family(WHOLE) else by_columns)


def _limits(comparison: Comparison, t: Words) -> str:
    table = comparison.tables["power_requirements"]
    fewest = table[table["n"] == table["n"].min()]
    plain, over = (fewest[fewest["correction"] == name].iloc[0] for name in ("none", "bonferroni"))
    sizes = {
        name: t["beyond_reach"] if np.isnan(row["smallest_detectable_d"]) else f"d_z = {row['smallest_detectable_d']:.2f}"
        for name, row in (("single", plain), ("corrected", over))
    }
    candidates = int(comparison.tables["recommendations"]["candidates"].max())
    return t["limits"].format(n=int(plain["n"]), tests=int(over["tests"]), candidates=candidates, **sizes)

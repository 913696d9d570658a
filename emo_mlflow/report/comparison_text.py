"""A comparison's report in words and tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from emo_mlflow.comparison import Comparison
from emo_mlflow.comparison.families import SIGNIFICANT
from emo_mlflow.comparison.rows import records
from emo_mlflow.comparison.tradeoff import DISTINCT_2_LIMIT, NLL_LIMIT
from emo_mlflow.report.blocks import Block, Bullets, Heading, Paragraph, Table
from emo_mlflow.report.highlights import setting_name
from emo_mlflow.statistics.power import TARGET

Words = Mapping[str, str]


def answer(comparison: Comparison, t: Words) -> list[str]:
    """The answer in three sentences: what rose, how much of it is sure, and what the design could see."""
    return [_raised(comparison, t), _tests(comparison, t), _limits(comparison, t)]


def _raised(comparison: Comparison, t: Words) -> str:
    table = comparison.tables["recommendations"]
    known = table[table["reason"] != "no_target"]
    if not len(known):
        return t["raised_untargeted"]
    groups = {reason: records(known[known["reason"] == reason]) for reason in ("specific", "beyond_random", "untested")}
    beyond = len(groups["beyond_random"])
    for reason, template in (
        ("specific", "raised"),
        ("untested", "raised_untested"),
        ("beyond_random", "raised_unsure"),
    ):
        if found := groups[reason]:
            best = max(found, key=lambda row: float(row["gain"]))
            more = t["raised_more"].format(beyond=beyond) if beyond else ""
            words = {"more": more, "chance": _by_chance(best, t)}
            return t[template].format(sure=len(found), total=len(known), beyond=beyond, **words, **best)
    drawn = (comparison.tables["specificity"]["n_draws"] > 0).any()
    return t["raised_none" if drawn else "raised_none_untested"].format(total=len(known))


def _by_chance(best: Mapping[str, Any], t: Words) -> str:
    """How probable it is that one of the candidates, were they independent, rises above all draws by chance."""
    chance = 1 - (1 - best["smallest_p"] / 2) ** best["candidates"]
    if chance < SIGNIFICANT:
        return ""
    return t["raised_chance"].format(candidates=best["candidates"], draws=int(best["n_draws"]), chance=chance)


def _tests(comparison: Comparison, t: Words) -> str:
    effects, specific = comparison.tables["effect_sizes"], comparison.tables["specificity"]
    columns = ", ".join(comparison.family)
    found = int((specific["p_bh"] < SIGNIFICANT).sum())
    beyond = specific["p"] <= specific["smallest_p"]
    smallest = specific["smallest_p"].min()
    # What exceeds every draw and is still not significant lacks draws, not size.
    too_few = found < beyond.sum() and (specific.loc[beyond, "p_bh"] >= SIGNIFICANT).any()
    draws = int(specific["n_draws"].max())
    return t["tests"].format(
        tests=int(effects["p_t"].notna().sum()),
        bh=int((effects["p_bh"] < SIGNIFICANT).sum()),
        bonferroni=int((effects["p_bonferroni"] < SIGNIFICANT).sum()),
        family=t["family_columns"].format(columns=columns) if columns else t["family_comparison"],
        beyond=int(beyond.sum()),
        chance=round(float(specific["smallest_p"].sum())),
        specific=found,
        reach=t["tests_reach"].format(draws=draws, smallest=smallest) if too_few else "",
    )


def _limits(comparison: Comparison, t: Words) -> str:
    table = comparison.tables["power_requirements"]
    fewest = table[table["n"] == table["n"].min()]
    smallest = [
        fewest.loc[fewest["correction"] == name, "smallest_detectable_d"].iloc[0] for name in ("none", "bonferroni")
    ]
    single, corrected = (t["beyond_reach"] if np.isnan(d) else f"{d:.2f}" for d in smallest)
    candidates = int(comparison.tables["recommendations"]["candidates"].max())
    return t["limits"].format(n=int(table["n"].min()), single=single, corrected=corrected, candidates=candidates)


def restrictions(comparison: Comparison, t: Words) -> list[Block]:
    """What restricts the comparison, one item each."""
    items = [t[note.code].format(**note.values) for note in comparison.notes]
    return [Heading(t["restrictions"]), Bullets(items) if items else Paragraph(t["no_restrictions"])]


def sweeps(comparison: Comparison, t: Words) -> list[Block]:
    """Settings of each sweep and its duration."""
    rows = []
    for source in comparison.sources:
        config = source.config
        windows = ", ".join(map(str, config["patch_window"]))
        rows.append(
            [
                source.label,
                source.run_id,
                t["layers_of"].format(swept=source.conditions["layer"].nunique(), all=source.n_layers),
                t["window"].format(scope=config["scope"], window=windows)
                if config["scope"] == "window"
                else str(config["scope"]),
                str(config["sequence_length"]),
                str(config["operation"])
                if source.phase == "head"
                else ", ".join(f"{alpha:g}" for alpha in config["alphas"]) + f" ({config['alpha_unit']})",
                str(source.prompts["prompt_id"].nunique()),
                str(source.conditions["draw"].nunique()),
                str(source.facts.get("device", "")),
                "" if np.isnan(source.seconds) else t["seconds"].format(seconds=source.seconds),
            ]
        )
    return [Heading(t["sweeps"]), Table(t["columns_sweeps"].split("|"), rows)]


def recommended(comparison: Comparison, t: Words) -> list[Block]:
    """The condition to use per model and emotion, and why."""
    rows = []
    for row in records(comparison.tables["recommendations"]):
        why = t["reason_" + row["reason"]].format(nll=NLL_LIMIT, distinct=DISTINCT_2_LIMIT)
        if row["reason"] != "no_target":
            why += "; " + t["of_candidates"].format(broken=row["n_broken"], candidates=row["candidates"])
        cells = [t["none"], *[""] * 6]
        if isinstance(row.get("condition_id"), str):
            cells = [
                setting_name(row, t),
                row["target"],
                signed(row["effect"]),
                interval(row["low"], row["high"]),
                _with_interval(row["specific"], row["specific_low"], row["specific_high"]),
                number(row["p_random"], "{:.3f}"),
                signed(row["nll_rise"]),
            ]
        rows.append([row["model"], row["emotion"], *cells, why])
    return [Heading(t["recommended"]), Table(t["columns_recommended"].split("|"), rows)]


def between(comparison: Comparison, t: Words) -> list[Block]:
    """The summary over models of each emotion's own label, at its largest, and how many differences were found."""
    blocks: list[Block] = [Heading(t["between"])]
    contrasts, summary = comparison.tables["model_contrasts"], comparison.tables["model_summary"]
    own = comparison.tables["tradeoff"][["emotion", "target"]].drop_duplicates()
    table = (
        summary.merge(own, left_on=["emotion", "metric"], right_on=["emotion", "target"])
        if len(summary) and len(own)
        else summary
    )
    if len(table):
        best = table.loc[table["estimate"].abs().groupby(table["emotion"]).idxmax().dropna()]
        rows = [
            [
                row["emotion"],
                row["metric"],
                f"{row['alpha']:g}",
                row["layers"],
                str(row["k"]),
                signed(row["estimate"]),
                interval(row["low"], row["high"]),
                number(row["i2"], "{:.0%}"),
                number(row["p_heterogeneity"], "{:.3g}"),
            ]
            for row in records(best)
        ]
        blocks += [Paragraph(t["between_note"]), Table(t["columns_between"].split("|"), rows)]
    else:
        blocks.append(Paragraph(t["between_none"]))
    if len(contrasts):
        found = int((contrasts["p_bh"] < SIGNIFICANT).sum())
        blocks.append(Paragraph(t["contrasts"].format(count=int(contrasts["p_t"].notna().sum()), bh=found)))
    return blocks


def power_table(comparison: Comparison, t: Words) -> list[Block]:
    """Prompts needed, and what the prompts at hand can find."""
    rows = [
        [
            row["model"],
            str(row["n"]),
            t["level_" + row["correction"]].format(tests=row["tests"]),
            f"{row['target_effect_size']:g}",
            str(row["required_n_effective"]),
            number(row["power"], "{:.1%}"),
            number(row["smallest_detectable_d"], "{:.2f}"),
        ]
        for row in records(comparison.tables["power_requirements"])
    ]
    return [
        Heading(t["power"]),
        Paragraph(t["power_note"].format(target=TARGET)),
        Table(t["columns_power"].split("|"), rows),
    ]


def example_texts(examples: pd.DataFrame, t: Words) -> list[Block]:
    """Baseline beside patched text."""
    rows = [
        [
            f"{row['emotion']}, {row['model']}, {setting_name(row, t)}",
            row["prompt"],
            row["baseline"],
            row["patched"],
            t["score_change"].format(before=row["score_baseline"], after=row["score_patched"]),
        ]
        for row in records(examples)
    ]
    return [Heading(t["texts"]), Paragraph(t["texts_note"]), Table(t["columns_texts"].split("|"), rows)] if rows else []


def methods(t: Words) -> list[Block]:
    """Definitions and files."""
    text = t["methods_text"].format(nll=NLL_LIMIT, distinct=DISTINCT_2_LIMIT)
    return [Heading(t["methods"]), Paragraph(text), Paragraph(t["files"])]


def number(value: float | None, form: str) -> str:
    """A number, or nothing where there is none."""
    return "" if value is None or pd.isna(value) else form.format(value)


def signed(value: float | None) -> str:
    """A change, with its sign."""
    return number(value, "{:+.3f}")


def interval(low: float | None, high: float | None) -> str:
    """An interval, or nothing where there is none."""
    return f"{signed(low)} … {signed(high)}" if signed(low) or signed(high) else ""


def _with_interval(value: float | None, low: float | None, high: float | None) -> str:
    ends = interval(low, high)
    return signed(value) + (f" ({ends})" if ends else "")

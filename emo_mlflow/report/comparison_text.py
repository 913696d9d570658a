"""A comparison's report in words and tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from emo_mlflow.comparison import Comparison
from emo_mlflow.comparison.families import significant
from emo_mlflow.comparison.rows import records
from emo_mlflow.report.blocks import Block, Bullets, Heading, Paragraph, Table
from emo_mlflow.report.comparison_answer import Words, movement
from emo_mlflow.report.highlights import setting_name
from emo_mlflow.scoring.broken import RISE
from emo_mlflow.statistics.intervals import BOOTSTRAP_FROM, LEAST
from emo_mlflow.statistics.power import TARGET
from emo_mlflow.statistics.signs import RANDOM_FLIPS


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
    rows, tradeoff = [], comparison.tables["tradeoff"]
    for row in records(comparison.tables["recommendations"]):
        own = tradeoff[(tradeoff["model"] == row["model"]) & (tradeoff["emotion"] == row["emotion"])]
        why = t["reason_" + row["reason"]].format(limit=RISE, **movement([own], t))
        if row["reason"] != "no_target":
            why += "; " + t["of_candidates"].format(broken=row["n_broken"], candidates=row["candidates"])
        cells = [t["none"], *[""] * 6]
        if isinstance(row.get("condition_id"), str):
            cells = [
                setting_name(row, t),
                row["target"],
                signed(row["effect"]),
                interval(row["low"], row["high"]),
                _draws(row, t),
                _searched(row, t),
                signed(row["broken_rise"]),
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
        found = int(significant(contrasts["p_bh"]).sum())
        blocks.append(Paragraph(t["contrasts"].format(count=int(contrasts["p"].notna().sum()), bh=found)))
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


def methods(comparison: Comparison, t: Words) -> list[Block]:
    """Definitions and files."""
    text = t["methods_text"].format(
        limit=RISE,
        resamples=comparison.n_bootstrap,
        flips=RANDOM_FLIPS,
        least=LEAST,
        many=BOOTSTRAP_FROM,
        many_less=BOOTSTRAP_FROM - 1,
    )
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


def _draws(row: Mapping[str, Any], t: Words) -> str:
    """The range of the random directions' effects, and how many of them break the text."""
    ends = interval(row["draws_min"], row["draws_max"])
    return ends and t["draws_broken"].format(ends=ends, broken=row["draws_broken"])


def _searched(row: Mapping[str, Any], t: Words) -> str:
    """p among random directions that search too, plain and corrected."""
    p = number(row["p_searched"], "{:.3f}")
    return p and t["p_and_holm"].format(p=p, holm=number(row["p_specific_holm"], "{:.3f}"))

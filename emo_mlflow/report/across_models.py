"""The report on studies of several models: what holds in all of them first, then each model's own answer and price."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from emo_mlflow.common.csv_files import write_csv
from emo_mlflow.comparison.rows import records
from emo_mlflow.report.blocks import Block, Bullets, Heading, Paragraph, Picture, Table, escape, to_html, to_markdown
from emo_mlflow.report.fonts import styled
from emo_mlflow.report.style import INK, MUTED, PATCHED, RANDOM, new_figure, save
from emo_mlflow.studying.across_models import AcrossModels

FIGURE = "figures/across_models.png"
SURE = (
    "That something holds in all models is said only if every model's own study says it. If there is a model in which it does not hold, that "
    "study would have to err, and it does so with a probability of at most 0.05 (the intersection-union test, Berger 1982). Where the sentence "
    "says so, that bound holds for all emotions together; else it holds for one emotion. A count such as 'specific in 1 of 3' lists the studies' "
    "own answers, each with its own error rate; 'in at least' is corrected over the models, and too high with a probability of at most 0.05 for "
    "one emotion (Benjamini and Heller 2008). The models are those that were studied: nothing here speaks of others."
)


PRICE = (
    *("emotion", "model", "layer", "strength", "KL, nats per token", "perplexity, times", "log-probability of right answers"),
    *("broken texts", "without the direction", "prompts on which it fell"),
)


def sentences(found: AcrossModels) -> list[str]:
    """What holds, an emotion each."""
    answers = found.tables["answers"]
    rows = records(found.tables["together"])
    return [_sentence(row, answers[answers["emotion"] == row["emotion"]], len(found.studies)) for row in rows]


def _sentence(row: dict[str, Any], own: pd.DataFrame, n_models: int) -> str:
    span = f"{row['metric']} changes by {row['lowest']:+.2f} to {row['highest']:+.2f}"
    if row["holds"] == "not shown":
        least = f" With a correction over the models: specific in at least {row['at_least']} of {n_models}." if row["at_least"] else ""
        return f"{row['emotion']}: not shown to hold in all {n_models} models. {_counts(own, n_models)}; {span}.{least}"
    rate = "over all emotions together" if row["corrected"] else "for this emotion; it is not corrected over the emotions"
    wrong = f"That is wrong in at most 5% of such comparisons, {rate}."
    if row["holds"] == "specific":
        return f"{row['emotion']}: does more than random directions in all {n_models} models; {span}; largest p {row['p_all']:.3f}. {wrong}"
    largest = f"largest p {_p(row['p_baseline_all'])}"
    return f"{row['emotion']}: its label rises against the baseline in all {n_models} models; {span}; {largest}. {wrong} {_counts(own, n_models)}."


def _counts(own: pd.DataFrame, n_models: int) -> str:
    """Which models have which verdict."""
    parts = []
    for verdict, group in own.groupby("verdict", sort=False):
        parts.append((len(group), f"{verdict} in {len(group)} of {n_models} ({', '.join(group['model'])})"))
    text = ", ".join(part for _, part in parts)
    return text[0].upper() + text[1:]


def standing(row: dict[str, Any], n_models: int) -> str:
    """An emotion's verdict over the models, for a tag."""
    if row["specific"]:
        return f"specific in {row['specific']} of {n_models}"
    return f"steers in {row['steers']} of {n_models}" if row["steers"] else f"not shown in any of {n_models}"


def across_lines(found: AcrossModels) -> list[str]:
    """One screen for the terminal."""
    lines = ["", f"{'emotion':<12}{'model':<24}{'verdict':<11}{'change':>7}{'95% interval':>17}{'p':>7}{'broken':>8}{'fell':>6}"]
    for row in records(found.tables["answers"]):
        lines.append(
            f"{row['emotion'][:11]:<12}{row['model'][:23]:<24}{row['verdict']:<11}{row['effect']:>+7.2f}{_interval(row):>17}{_p(row['p_all']):>7}"
            f"{row['broken_steered']:>8.0%}{row['harmed']:>6.0%}"
        )
    return [*lines, "", *sentences(found), *(f"Note: {note}" for note in found.notes), ""]


def across_note(found: AcrossModels) -> str:
    """The run's description."""
    return "\n\n".join(f"- {escape(line)}" for line in [*sentences(found), *found.notes])


@styled("en")
def write_across_models(found: AcrossModels, folder: Path) -> None:
    """Writes the tables, the figure, report.md and report.html."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in found.tables.items():
        table.to_parquet(folder / f"{name}.parquet", index=False)
        write_csv(table, folder / f"{name}.csv")
    save(forest(found), folder / FIGURE)
    blocks = list(_blocks(found))
    (folder / "report.md").write_text(to_markdown(blocks), encoding="utf-8")
    (folder / "report.html").write_text(to_html(blocks, folder, "en"), encoding="utf-8")


def forest(found: AcrossModels) -> Figure:
    """By emotion, each model's effect with its interval over the range of the random directions that it met, and its verdict."""
    answers, rungs = found.tables["answers"], found.tables["rungs"]
    emotions = list(found.tables["together"]["emotion"])
    n_rows = len(answers) + len(emotions)
    figure = new_figure(7.2, 1.0 + 0.27 * n_rows)
    axes = figure.subplots()
    ticks: list[tuple[float, str, bool]] = []
    y = 0.0
    for emotion in emotions:
        own = records(answers[answers["emotion"] == emotion])
        ticks.append((y, f"{emotion}: {own[0]['metric']}", True))
        for row in own:
            y -= 1
            draws = rungs[(rungs["emotion"] == emotion) & (rungs["model"] == row["model"]) & (rungs["draws"] > 0)]
            if len(draws):
                span = [draws["draw_low"].min(), draws["draw_high"].max()]
                axes.plot(span, [y, y], color=RANDOM, lw=7, alpha=0.55, solid_capstyle="butt")
                axes.plot(span, [y, y], color=RANDOM, marker="|", ms=7, ls="none")
            colour = {"specific": PATCHED, "steers": INK}.get(row["verdict"], MUTED)
            if np.isfinite(row["low"]):
                axes.plot([row["low"], row["high"]], [y, y], color=colour, lw=2, solid_capstyle="butt")
            axes.plot([row["effect"]], [y], marker="D", color=colour, ms=5.5, ls="none")
            text = f"{row['verdict']}, p {_p(row['p_all'])}"
            axes.annotate(text, (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=8, color=colour, annotation_clip=False)
            ticks.append((y, row["model"], False))
        y -= 1.5
    axes.set_yticks([tick[0] for tick in ticks], [tick[1] for tick in ticks])
    for label, (_, _, heads_a_group) in zip(axes.get_yticklabels(), ticks, strict=True):
        label.set_color(INK if heads_a_group else MUTED)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.axvline(0, color=MUTED, lw=0.8)
    axes.set_xlabel("mean change of the own label from the baseline")
    axes.set_title(f"The same emotions in {len(found.studies)} models")
    return figure


def _blocks(found: AcrossModels) -> Iterator[Block]:
    count = len(found.studies)
    yield Heading(f"Studies of {count} models: what holds in all of them", 1)
    yield Bullets(sentences(found))
    if found.notes:
        yield Heading("What restricts this")
        yield Bullets(found.notes)
    yield Picture(FIGURE, "Diamond and line: the direction and its 95% interval. Grey bar: the random directions that it met, lowest to highest.")
    yield Heading("By emotion and model")
    yield Table(("emotion", "model", "verdict", "prompts", "change", "95% interval", "p (baseline, Holm)", *_controls(found)), _by_model(found))
    yield Paragraph("p by kind of random direction; a dash was not tested, and what is in brackets does not count because its texts are broken.")
    yield Heading("At what price")
    yield Table(PRICE, _price(found))
    yield Heading("How sure")
    yield Paragraph(SURE)
    yield Heading("The studies")
    yield Table(("model", "run", "prompts", "emotions in their order"), _studies(found))


def _controls(found: AcrossModels) -> list[str]:
    return [str(name) for name in dict.fromkeys(found.tables["rungs"]["control"]) if not str(name).startswith("other: ")]


def _by_model(found: AcrossModels) -> list[tuple[str, ...]]:
    rungs = {(row["emotion"], row["model"], row["control"]): row for row in records(found.tables["rungs"])}
    rows = []
    for row in records(found.tables["answers"]):
        keys = [(row["emotion"], row["model"], control) for control in _controls(found)]
        p = [_rung(rungs[key]) if key in rungs else "-" for key in keys]
        head = (row["emotion"], row["model"], row["verdict"], str(row["n"]), f"{row['effect']:+.2f}", _interval(row))
        rows.append((*head, _p(row["p_baseline_holm"]), *p))
    return rows


def _rung(row: dict[str, Any]) -> str:
    if not row["draws"]:
        return "-"
    text = f"{_p(row['p'])} ({row['draws']})"
    return f"[{text}]" if row["void"] else text


def _price(found: AcrossModels) -> list[tuple[str, ...]]:
    return [
        (
            row["emotion"],
            row["model"],
            row["layer"],
            f"{row['alpha']:g} {row['alpha_unit']}",
            f"{row['kl']:.2f}",
            f"{row['perplexity_ratio']:.2f}",
            f"{row['log_probability_change']:+.2f}",
            f"{row['broken_steered']:.0%}",
            f"{row['broken_baseline']:.0%}",
            f"{row['harmed']:.0%}",
        )
        for row in records(found.tables["answers"])
    ]


def _studies(found: AcrossModels) -> list[tuple[str, ...]]:
    return [(study.model, study.run_id, str(len(study.design["prompts"])), ", ".join(study.labels)) for study in found.studies]


def _interval(row: dict[str, Any]) -> str:
    return f"{row['low']:+.2f} to {row['high']:+.2f}" if np.isfinite(row["low"]) else "-"


def _p(value: float) -> str:
    if not np.isfinite(value):
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}"

"""A comparison's figures of single effects: intervals, places among random directions, costs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from emo_mlflow.comparison import Comparison
from emo_mlflow.comparison.families import significant
from emo_mlflow.comparison.rows import records
from emo_mlflow.report.highlights import draw_effects, setting_name
from emo_mlflow.report.style import INK, MARKERS, MUTED, PATCHED, new_figure

LINES = ("-", "--", ":", "-.")
SHADES = ("#222222", "#b35806", "#6a51a3", "#1b7837", "#2171b5", "#8c2d04")


def forest(strongest: pd.DataFrame, t: Mapping[str, str]) -> Figure | None:
    """Mean changes with their intervals, d_z beside them; hollow where BH finds nothing."""
    if not len(strongest):
        return None
    rows = records(strongest)
    several = len({row["model"] for row in rows}) > 1
    names = [f"{row['model'] + ': ' if several else ''}{row['emotion']} → {row['metric']} ({setting_name(row, t)})" for row in rows]
    figure = new_figure(5.2 + 0.062 * max(map(len, names)), 1.0 + 0.27 * len(rows))
    axes = figure.subplots()
    for y, row in enumerate(rows):
        axes.plot([row["diff_low"], row["diff_high"]], [y, y], color=INK, lw=1.3, zorder=2)
        face = INK if significant(row["p_bh"]) else "white"
        axes.plot(row["mean_diff"], y, marker="o", ms=5.5, mfc=face, mec=INK, zorder=3)
        axes.text(1.01, y, f"d_z = {row['d_z']:+.2f}", transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    axes.axvline(0, color=MUTED, lw=0.9)
    if 0 < (own := int((~strongest["other"]).sum())) < len(strongest):
        axes.axhline(own - 0.5, color=MUTED, lw=0.7, ls=":")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(t["axis_change"])
    axes.grid(axis="x")
    handles = [
        axes.plot([], [], marker="o", ls="", mfc=face, mec=INK, label=t[name])[0]
        for face, name in ((INK, "significant"), ("white", "not_significant"))
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=2)
    return figure


def random_null(comparison: Comparison, shown: pd.DataFrame, t: Mapping[str, str]) -> Figure | None:
    """The effects of the random draws, and the place of the emotion's among them, at the conditions shown."""
    shown = shown[shown["n_draws"] > 0]
    if not len(shown):
        return None
    figure = new_figure(7.6, 1.15 + 0.62 * len(shown))
    axes = figure.subplots()
    names = []
    for y, row in enumerate(records(shown)):
        draws = draw_effects(comparison, row["model"], row["condition_id"], row["target"])
        spread = np.random.default_rng(0).uniform(-0.16, 0.16, len(draws))
        axes.scatter(draws, y + spread, marker="|", s=90, color=MUTED, lw=0.9, zorder=2)
        axes.plot([row["low"], row["high"]], [y, y], color=PATCHED, lw=2, zorder=3)
        axes.scatter([row["effect"]], [y], marker="D", s=42, color=PATCHED, zorder=4)
        model = f", {row['model']}" if shown["model"].nunique() > 1 else ""
        names.append(f"{row['emotion']}{model}\n{row['target']}, {setting_name(row, t)}")
        place = t["place"].format(p=row["p_searched"], draws=int(row["searched_draws"]))
        axes.text(1.01, y, "" if pd.isna(row["p_searched"]) else place, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    axes.axvline(0, color=MUTED, lw=0.9)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(t["axis_change"])
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.grid(axis="x")
    handles = [
        axes.scatter([], [], marker="D", s=42, color=PATCHED, label=t["legend_direction"]),
        axes.scatter([], [], marker="|", s=90, color=MUTED, label=t["legend_draws"]),
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=2)
    return figure


def pareto(comparison: Comparison, t: Mapping[str, str]) -> Figure | None:
    """Gain against the share of text that it breaks, a panel per model; broken text hollow, the front joined."""
    table = comparison.tables["tradeoff"]
    if not len(table):
        return None
    models, emotions = list(dict.fromkeys(table["model"])), list(dict.fromkeys(table["emotion"]))
    columns = min(3, len(models))
    rows = -(-len(models) // columns)
    figure = new_figure(max(5.0, 3.6 * columns), 3.3 * rows + 0.4)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for spare in grid[len(models) :]:
        spare.set_visible(False)
    for axes, model in zip(grid, models, strict=False):
        for i, emotion in enumerate(emotions):
            own = table[(table["model"] == model) & (table["emotion"] == emotion)]
            colour, marker = SHADES[i % len(SHADES)], MARKERS[i % len(MARKERS)]
            broken = own["broken"]
            axes.scatter(
                own["broken_rise"][~broken], own["gain"][~broken], s=26, marker=marker, color=colour, alpha=0.85, zorder=3
            )
            axes.scatter(
                own["broken_rise"][broken],
                own["gain"][broken],
                s=26,
                marker=marker,
                facecolor="white",
                edgecolor=colour,
                zorder=2,
            )
            front = own[~broken & (own["gain"] > 0)].sort_values("broken_rise")
            front = front[front["gain"] >= front["gain"].cummax()]
            axes.plot(front["broken_rise"], front["gain"], color=colour, lw=0.9, ls=LINES[i % len(LINES)], zorder=1)
        axes.set_title(model)
        axes.axhline(0, color=MUTED, lw=0.8, zorder=0)
        axes.axvline(0, color=MUTED, lw=0.8, zorder=0)
        axes.grid()
    handles = [
        grid[0].plot(
            [], [], marker=MARKERS[i % len(MARKERS)], ls=LINES[i % len(LINES)], color=SHADES[i % len(SHADES)], label=e
        )[0]
        for i, e in enumerate(emotions)
    ]
    handles.append(grid[0].plot([], [], marker="o", ls="", mfc="white", mec=MUTED, label=t["legend_broken"])[0])
    figure.legend(handles=handles, loc="outside upper left", ncols=4)
    figure.supxlabel(t["axis_broken"])
    figure.supylabel(t["axis_gain"])
    return figure

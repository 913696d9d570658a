"""A comparison's figures over strength, depth and dimension."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from emo_mlflow.comparison import Comparison
from emo_mlflow.comparison.rows import records
from emo_mlflow.report.comparison_points import LINES, SHADES
from emo_mlflow.report.highlights import draw_effects, sweep_of
from emo_mlflow.report.style import MARKERS, MUTED, RANDOM, new_figure

DODGE = 0.008  # of the x range, between models, so that their intervals stay apart


def dose_curves(comparison: Comparison, shown: pd.DataFrame, t: Mapping[str, str]) -> Figure | None:
    """Change of the target over alpha at the layer shown: a panel per emotion, a line per model, draws behind."""
    shown = shown[[len(_series(comparison, row, "alpha")) > 1 for row in records(shown)]]
    return _profiles(comparison, shown, "alpha", t) if len(shown) else None


def layer_profiles(comparison: Comparison, shown: pd.DataFrame, t: Mapping[str, str]) -> Figure | None:
    """Change of the target over relative depth at the alpha shown, so that models of different depth compare."""
    shown = shown[[sweep_of(comparison, str(m)).conditions["layer"].nunique() > 1 for m in shown["model"]]]
    return _profiles(comparison, shown, "depth", t) if len(shown) else None


def _profiles(comparison: Comparison, shown: pd.DataFrame, over: str, t: Mapping[str, str]) -> Figure:
    emotions, models = list(dict.fromkeys(shown["emotion"])), list(dict.fromkeys(shown["model"]))
    columns = min(3, len(emotions))
    rows = -(-len(emotions) // columns)
    figure = new_figure(3.4 * columns + 0.6, (2.6 + 0.12 * len(models)) * rows)
    panels = list(figure.subplots(rows, columns, squeeze=False, sharey=True).ravel())
    for spare in panels[len(emotions) :]:
        spare.set_visible(False)
    for axes, emotion in zip(panels, emotions, strict=False):
        own = shown[shown["emotion"] == emotion]
        for row in records(own):
            held = f"{t['short_layer']} {row['layer']}" if over == "alpha" else f"α = {row['alpha']:g}"
            series = _series(comparison, row, over)
            _curve(axes, series, over, models.index(row["model"]), f"{row['model']}, {held}")
        axes.set_title(f"{emotion}: {own['target'].iloc[0]}")
        axes.set_xlabel(t[f"axis_{over}"])
    low, high = panels[0].get_ylim()
    # Room for legends above the curves: they would cover them anywhere else.
    panels[0].set_ylim(low, high + (high - low) * (0.04 + 0.085 * len(models)))
    for axes in panels[: len(emotions)]:
        axes.axhline(0, color=MUTED, lw=0.8, zorder=0)
        axes.grid()
        axes.legend(loc="upper left")
    figure.supylabel(t["axis_change"])
    return figure


def _series(comparison: Comparison, row: Mapping[str, Any], over: str) -> pd.DataFrame:
    """The conditions that differ from the row's in alpha or in layer alone, with the range of their random draws."""
    series = comparison.tables["tradeoff"]
    for name in ("model", "emotion", "scope", "patch_window", "layer" if over == "alpha" else "alpha"):
        series = series[series[name].isna() if pd.isna(row[name]) else (series[name] == row[name]).fillna(False)]
    series = series.sort_values(over)
    draws = [draw_effects(comparison, row["model"], r["condition_id"], r["target"]) for r in records(series)]
    ends = [(d.min(), d.max()) if len(d) else (np.nan, np.nan) for d in draws]
    return series.assign(random_low=[end[0] for end in ends], random_high=[end[1] for end in ends])


def _curve(axes: Axes, series: pd.DataFrame, over: str, i: int, label: str) -> None:
    centre = series[over].to_numpy(float)
    x = centre + i * DODGE * max(1.0, float(np.ptp(centre)))
    y = series["effect"].to_numpy(float)
    colour = SHADES[i % len(SHADES)]
    axes.fill_between(
        centre,
        series["random_low"].to_numpy(float),
        series["random_high"].to_numpy(float),
        color=colour,
        alpha=0.15,
        lw=0,
        zorder=1,
    )
    ends = series[["low", "high"]].to_numpy(float)
    errors = np.abs(np.where(np.isnan(ends), 0.0, ends - y[:, None])).T
    axes.errorbar(
        x, y, yerr=errors, color=colour, ls=LINES[i % len(LINES)], lw=1.4, elinewidth=0.9, capsize=2, zorder=3
    )
    broken = series["broken"].to_numpy(bool)
    marker = MARKERS[i % len(MARKERS)]
    axes.plot(x[~broken], y[~broken], marker=marker, ls="", ms=5, color=colour, zorder=4)
    axes.plot(x[broken], y[broken], marker=marker, ls="", ms=5, mfc="white", mec=colour, zorder=4)
    axes.plot([], [], marker=marker, ls=LINES[i % len(LINES)], color=colour, lw=1.4, ms=5, label=label)


def overlap_curves(comparison: Comparison, t: Mapping[str, str]) -> Figure | None:
    """Overlap of subspaces against k with its interval, beside random subspaces, a panel per pair of models."""
    table = comparison.tables["k_selection"]
    if not len(table):
        return None
    pairs = list(table.groupby(["model_a", "model_b"], sort=False))
    columns = min(3, len(pairs))
    rows = -(-len(pairs) // columns)
    figure = new_figure(max(5.0, 3.6 * columns), 3.1 * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for spare in grid[len(pairs) :]:
        spare.set_visible(False)
    for axes, ((first, second), own) in zip(grid, pairs, strict=False):
        for i, (emotion, part) in enumerate(own.groupby("emotion", sort=False)):
            part = part.sort_values("k")
            ends = np.abs(part[["low", "high"]].to_numpy(float) - part[["excess"]].to_numpy(float)).T
            style = {"color": SHADES[i % len(SHADES)], "marker": MARKERS[i % len(MARKERS)], "ls": LINES[i % len(LINES)]}
            axes.errorbar(
                part["k"],
                part["mean_overlap"],
                yerr=np.nan_to_num(ends),
                ms=5,
                lw=1.3,
                capsize=2,
                label=str(emotion),
                **style,
            )
        null = own.groupby("k")[["null_mean", "null_q95"]].mean()
        axes.fill_between(
            null.index, null["null_mean"], null["null_q95"], color=RANDOM, alpha=0.4, lw=0, label=t["legend_null"]
        )
        axes.set_title(f"{first} – {second}")
        axes.set_xlabel(t["axis_k"])
        axes.legend()
    figure.supylabel(t["axis_overlap"])
    return figure

"""The figures of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from emo_mlflow.report.findings import BROKEN, SMALLEST_EFFECT, Finding, effect_table
from emo_mlflow.report.style import BASELINE, DIVERGING, INK, MARKERS, PATCHED, RANDOM, new_figure
from emo_mlflow.scoring.targets import target_metric
from emo_mlflow.sweeping.results import SweepResult

OWN = "the emotion's own label (probability)"
FAMILIES = {
    OWN: None,
    "sentiment: positive (probability)": "sentiment.positive",
    "politeness: polite (probability)": "politeness.polite",
    "broken text (probability)": BROKEN,
}
PALE = 0.05  # the largest change that the darkest colour may stand for: smaller ones are pale, whatever else there is
MOST_NUMBERS = 60  # cells of a heat map beyond which numbers are not written into them
MOST_SIGNS = 2_000  # beyond which signs are not, either
MOST_ROWS = 40  # that have a line and a label of their own
MOST_POINTS = 2_000  # that are drawn one by one in a figure for a paper


def heat_maps(result: SweepResult) -> Figure:
    """Layer x emotion, one panel per family of metrics: the mean difference from the baseline over prompts."""
    table = result.effects_of(("emotion",))
    metrics = set(table["metric"])
    families = {title: name for title, name in FAMILIES.items() if name is None or name in metrics}
    table["row"] = [
        _row_label(*setting) for setting in table[["emotion", "alpha", "patch_window"]].itertuples(index=False)
    ]
    rows = list(dict.fromkeys(table["row"]))
    layers = sorted(table["layer"].unique())
    targets = {emotion: target_metric(emotion, metrics) for emotion in table["emotion"].unique()}
    figure = new_figure(max(6.5, 2.2 + 0.42 * len(layers)), 1.0 + len(families) * (0.75 + 0.28 * min(len(rows), MOST_ROWS)))
    for axes, (title, name) in zip(
        figure.subplots(len(families), 1, squeeze=False)[:, 0], families.items(), strict=True
    ):
        chosen = table[table["metric"] == (table["emotion"].map(targets) if name is None else name)]
        grid = chosen.pivot_table(index="row", columns="layer", values="mean_diff", dropna=False)
        values = grid.reindex(index=rows, columns=layers).to_numpy(dtype=float, na_value=np.nan)
        _heat_map(figure, axes, values, rows, [str(layer) for layer in layers])
        axes.set_title(f"Change of {title}")
    axes.set_xlabel("layer at which the direction is injected")
    return figure


def _row_label(emotion: str, alpha: float, window: Any) -> str:
    return f"{emotion}, \N{GREEK SMALL LETTER ALPHA} = {alpha:g}" + ("" if pd.isna(window) else f", W = {window}")


def _heat_map(figure: Figure, axes: Axes, values: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> None:
    limit = float(np.nanmax(np.abs(values), initial=PALE))
    image = axes.imshow(values, cmap=DIVERGING, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    step = max(1, -(-len(rows) // MOST_ROWS))
    axes.set_yticks(range(0, len(rows), step), rows[::step])
    step = max(1, -(-len(columns) // 24))
    axes.set_xticks(range(0, len(columns), step), columns[::step])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if values.size <= MOST_NUMBERS:
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                shade = "white" if abs(value) > 0.6 * limit else INK
                axes.text(j, i, f"{value:+.2f}" if abs(value) >= 0.005 else "0", ha="center", va="center", fontsize=8, color=shade)
    elif values.size <= MOST_SIGNS:
        for i, j in np.argwhere(values < -0.2 * limit):  # printed in grey, both ends of the colours are dark
            axes.text(
                j,
                i,
                "\N{MINUS SIGN}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if values[i, j] < -0.6 * limit else INK,
            )
    figure.colorbar(image, ax=axes, pad=0.01, shrink=0.9)


def against_random(findings: Sequence[Finding]) -> Figure:
    """Per emotion at its strongest condition: baseline, patched, and what every random control of it gave."""
    figure = new_figure(6.8, 0.9 + 0.75 * len(findings))
    axes = figure.subplots()
    for y, found in enumerate(findings):
        axes.plot([found.baseline, found.patched], [y, y], color=INK, lw=1.2, zorder=1)
        axes.scatter([found.baseline], [y], marker="o", s=46, color="white", edgecolor=BASELINE, lw=1.5, zorder=3)
        axes.scatter([found.patched], [y], marker="D", s=52, color=PATCHED, zorder=3)
        low, high = found.interval
        if np.isfinite(low):
            axes.plot([found.baseline + low, found.baseline + high], [y, y], color=PATCHED, lw=2.4, solid_capstyle="butt", zorder=2)
        spread = np.linspace(-0.16, 0.16, len(found.randoms)) if len(found.randoms) > 1 else [0.0] * len(found.randoms)
        axes.scatter(
            [found.baseline + r for r in found.randoms],
            y + 0.26 + 0.6 * np.array(spread),
            marker="|",
            s=60,
            color=INK,
            alpha=0.6,
            zorder=2,
        )
    axes.set_yticks(
        range(len(findings)),
        [f"{f.emotion}\n{f.metric}, layer {f.layer}, \N{GREEK SMALL LETTER ALPHA} = {f.alpha:g}" for f in findings],
    )
    axes.set_ylim(len(findings) - 0.4, -0.6)
    axes.set_xlabel("mean score over prompts (probability)")
    axes.grid(axis="x")
    handles = [
        axes.scatter([], [], marker="o", s=46, color="white", edgecolor=BASELINE, lw=1.5, label="baseline"),
        axes.scatter([], [], marker="D", s=52, color=PATCHED, label="direction injected, 95% interval of the change"),
        axes.scatter([], [], marker="|", s=60, color=INK, label="random directions of the same norm"),
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=3, handletextpad=0.2, columnspacing=1.2)
    return figure


def effect_against_price(result: SweepResult, findings: Sequence[Finding]) -> Figure:
    """Every condition: how much the emotion's own label rose, and how much text it broke; beside the strongest, where it is."""
    table = effect_table(result)
    metrics = set(table["metric"])
    emotions = list(dict.fromkeys(table.loc[table["kind"] == "emotion", "emotion"]))
    targets = {emotion: target_metric(emotion, metrics) for emotion in emotions}
    wide = table.pivot_table(
        index=["condition_id", "kind", "emotion"], columns="metric", values="mean_diff"
    ).reset_index()
    figure = new_figure(6.8, 4.2)
    axes = figure.subplots()
    axes.axhline(0, color="#bbbbbb", lw=0.8, zorder=0)
    axes.axvline(0, color="#bbbbbb", lw=0.8, zorder=0)
    shades = ("#b35806", "#542788", "#1b7837", "#2166ac", "#762a83", "#8c510a")
    for i, emotion in enumerate(name for name in emotions if targets[name]):
        own = wide[(wide["emotion"] == emotion) & (wide["kind"] == "emotion")]
        controls = wide[(wide["emotion"] == emotion) & (wide["kind"] == "random")]
        axes.scatter(controls[BROKEN], controls[targets[emotion]], s=9, color=RANDOM, marker=".", zorder=1, rasterized=len(controls) > MOST_POINTS)
        style: dict[str, Any] = {"marker": MARKERS[i % len(MARKERS)], "color": shades[i % len(shades)]}
        axes.scatter(
            own[BROKEN],
            own[targets[emotion]],
            s=38,
            alpha=0.85,
            label=f"{emotion} ({targets[emotion]})",
            zorder=2,
            **style,
        )
    places = wide.set_index("condition_id")
    for found in findings:
        if found.price and found.metric == targets.get(found.emotion) and abs(found.difference) >= SMALLEST_EFFECT:
            at = (places.at[found.condition_id, BROKEN], places.at[found.condition_id, found.metric])
            where = f"layer {found.layer}, \N{GREEK SMALL LETTER ALPHA} = {found.alpha:g}"
            axes.annotate(where, at, xytext=(6, 0), textcoords="offset points", va="center", fontsize=8)
    if (wide["kind"] == "random").any():
        axes.scatter([], [], s=20, color=RANDOM, marker=".", label="random controls")
    axes.set_xlabel("change of the share of broken text")
    axes.set_ylabel("change of the emotion's own label (probability)")
    figure.legend(loc="outside upper left", ncols=2, handletextpad=0.2)
    return figure

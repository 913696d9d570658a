"""A comparison's heat maps: effects over layers, and over metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from emo_mlflow.comparison import Comparison
from emo_mlflow.comparison.families import significant
from emo_mlflow.comparison.rows import records
from emo_mlflow.report.highlights import setting_name
from emo_mlflow.report.style import DIVERGING, INK, MUTED, new_figure
from emo_mlflow.scoring.targets import target_metric
from emo_mlflow.statistics.moments import Floats, Mask

LARGEST_D = 3.0  # the scale ends here: beyond it, effects differ in how little they vary
MOST_NUMBERS = 16  # columns up to which cells are numbered


def condition_name(emotion: str, alpha: float, window: Any) -> str:
    """How a row names a setting at all layers."""
    return f"{emotion}, α = {alpha:g}" + ("" if pd.isna(window) else f", W = {int(window)}")


def layer_maps(comparison: Comparison, t: Mapping[str, str]) -> Figure | None:
    """d_z of each emotion's own label by layer, a panel per model, on one scale; crosses where BH finds nothing."""
    effects = comparison.tables["effect_sizes"]
    metrics = set(effects["metric"])
    own = effects[[target_metric(e, metrics) == m for e, m in zip(effects["emotion"], effects["metric"], strict=True)]]
    if not len(own):
        return None
    own = own.assign(
        row=[condition_name(*key) for key in own[["emotion", "alpha", "patch_window"]].itertuples(index=False)]
    )
    models = list(dict.fromkeys(own["model"]))
    rows = {model: list(dict.fromkeys(own.loc[own["model"] == model, "row"])) for model in models}
    columns = max(own.loc[own["model"] == model, "layer"].nunique() for model in models)
    limit = min(LARGEST_D, float(np.nanmax(own["d_z"].abs(), initial=0.5)))
    heights = [len(rows[model]) + 1.6 for model in models]
    figure = new_figure(min(12.0, max(5.5, 2.6 + 0.42 * columns)), 1.3 + 0.27 * sum(heights))
    image = None
    panels = figure.subplots(len(models), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, model in zip(panels, models, strict=True):
        table = own[own["model"] == model]
        layers = sorted(table["layer"].unique())
        grids = [
            table.pivot_table(index="row", columns="layer", values=v, dropna=False).reindex(
                index=rows[model], columns=layers
            )
            for v in ("d_z", "p_bh")
        ]
        values, p = (grid.to_numpy(dtype=float, na_value=np.nan) for grid in grids)
        image = draw_map(axes, values, ~significant(p), limit)
        axes.set_yticks(range(len(rows[model])), rows[model])
        step = max(1, -(-len(layers) // 24))
        axes.set_xticks(range(0, len(layers), step), [str(layer) for layer in layers[::step]])
        axes.set_title(model)
        firsts = own.loc[own["model"] == model].drop_duplicates("row")["emotion"].tolist()
        for row in range(1, len(firsts)):
            if firsts[row] != firsts[row - 1]:
                axes.axhline(row - 0.5, color="white", lw=2.5)
    panels[-1].set_xlabel(t["axis_layer"])
    assert image is not None
    _scale(figure, image, list(panels), t["axis_dz_own"], "both" if limit == LARGEST_D else "neither")
    return figure


def head_maps(comparison: Comparison, t: Mapping[str, str]) -> Figure | None:
    """d_z of each emotion's own label when a head is replaced: a panel per model and emotion, layers across and heads down."""
    effects = comparison.tables["effect_sizes"]
    metrics = set(effects["metric"])
    own = effects[[target_metric(e, metrics) == m for e, m in zip(effects["emotion"], effects["metric"], strict=True)]]
    own = own.drop_duplicates(["model", "emotion", "layer", "head"])
    if not len(own):
        return None
    panels = list(own.groupby(["model", "emotion"], sort=False))
    shapes = [(sorted(table["head"].unique()), sorted(table["layer"].unique())) for _, table in panels]
    limit = min(LARGEST_D, float(np.nanmax(own["d_z"].abs(), initial=0.5)))
    heights = [len(heads) + 2.4 for heads, _ in shapes]
    width = min(12.0, max(5.5, 2.0 + 0.42 * max(len(layers) for _, layers in shapes)))
    figure = new_figure(width, 1.3 + 0.22 * sum(heights))
    axes_of = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    image = None
    for axes, ((model, emotion), table), (heads, layers) in zip(axes_of, panels, shapes, strict=True):
        values, p = (
            table.pivot(index="head", columns="layer", values=v).reindex(index=heads, columns=layers).to_numpy(float, na_value=np.nan)
            for v in ("d_z", "p_bh")
        )
        image = draw_map(axes, values, ~significant(p), limit)
        axes.set_yticks(range(len(heads)), [str(head) for head in heads])
        axes.set_xticks(range(len(layers)), [str(layer) for layer in layers])
        axes.set_title(f"{emotion}, {model}")
        axes.set_ylabel(t["short_head"])
    axes_of[-1].set_xlabel(t["short_layer"])
    assert image is not None
    _scale(figure, image, list(axes_of), t["axis_dz_own"], "both" if limit == LARGEST_D else "neither")
    return figure


def metric_matrix(comparison: Comparison, shown: pd.DataFrame, t: Mapping[str, str]) -> Figure | None:
    """Emotion by metric: the mean change of every score at the conditions shown; crosses where BH finds nothing."""
    if not len(shown):
        return None
    effects = comparison.tables["effect_sizes"]
    metrics = [metric for metric in dict.fromkeys(effects["metric"]) if not metric.startswith("fluency.")]
    keys = shown[["model", "condition_id"]].merge(effects, on=["model", "condition_id"])
    index = pd.MultiIndex.from_frame(shown[["model", "condition_id"]])
    grids = [
        keys.pivot(index=["model", "condition_id"], columns="metric", values=v).reindex(index=index, columns=metrics)
        for v in ("mean_diff", "p_bh")
    ]
    values, p = (grid.to_numpy(dtype=float) for grid in grids)
    names = [f"{row['emotion']}, {row['model']}\n{setting_name(row, t)}" for row in records(shown)]
    figure = new_figure(min(13.0, 3.6 + 0.27 * len(metrics)), 2.9 + 0.4 * len(shown))
    axes = figure.subplots()
    limit = float(np.nanmax(np.abs(values), initial=1e-3))
    image = draw_map(axes, values, ~significant(p), limit)
    axes.set_yticks(range(len(names)), names)
    axes.set_xticks(range(len(metrics)), metrics, rotation=60, ha="right", rotation_mode="anchor")
    for row, target in enumerate(shown["target"]):
        axes.add_patch(
            Rectangle((metrics.index(target) - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=INK, lw=1.6, clip_on=False)
        )
    _scale(figure, image, [axes], t["axis_change"], "neither")
    return figure


def _scale(figure: Figure, image: AxesImage, panels: list[Axes], label: str, ends: Literal["both", "neither"]) -> None:
    """A colour bar above, where its label has room however few rows there are."""
    bar = figure.colorbar(
        image, ax=panels, location="top", pad=0.02, shrink=0.5, aspect=36, extend=ends, anchor=(0.0, 0.0)
    )
    bar.set_label(label)


def draw_map(axes: Axes, values: Floats, unsure: Mask, limit: float) -> AxesImage:
    """A heat map of [rows, columns] with numbers, in parentheses where unsure; or with crosses there and signs beside colours."""
    image = axes.imshow(values, cmap=DIVERGING, vmin=-limit, vmax=limit, aspect="auto")
    axes.set_facecolor("#dddddd")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    numbered = values.shape[1] <= MOST_NUMBERS
    for (row, column), value in np.ndenumerate(values):
        if np.isnan(value):
            continue
        shade = "white" if abs(value) > 0.6 * limit else INK
        if numbered:
            digits = 1 if limit >= 1 else 2
            text = f"{round(value, digits) or 0.0:+.{digits}f}"
            text = f"({text})" if unsure[row, column] else text
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=shade)
        elif unsure[row, column]:
            axes.plot(column, row, marker="x", ms=4.5, mew=0.9, color=MUTED if shade == INK else shade)
        elif value < 0:
            axes.text(column, row, "-", ha="center", va="center", fontsize=8, color=shade)
    return image

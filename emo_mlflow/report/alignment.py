"""Figures and report of an alignment: overlap before and after against both nulls, over k and over pairs of depths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from emo_mlflow.alignment.tables import matched
from emo_mlflow.common.names import short_name
from emo_mlflow.comparison.rows import records
from emo_mlflow.report.blocks import Block, Heading, Paragraph, Picture, Table, to_markdown
from emo_mlflow.report.fonts import styled
from emo_mlflow.report.style import BASELINE, DIVERGING, INK, MUTED, PATCHED, RANDOM, new_figure, save

CAPTIONS = {
    "overlap_by_k": "Overlap of emotion subspaces (mean squared cosine of principal angles) against their rank k, mean over layers of equal relative "
    "depth. The two models' subspaces are fitted on different texts. Grey: random subspaces, and model A's labels shuffled, each from "
    "its mean to its 95th percentile; random subspaces know nothing of the few directions in which every text varies most, "
    "shuffled labels do. "
    "The ceiling is the overlap of model B with itself on different texts.",
    "overlap_by_depth": "Overlap at k = 1 after the map, for every pair of relative depths; dots mark pairs that the shuffled labels reach "
    "in fewer than 5% of the draws.",
    "directions": "Cosine of model A's direction, carried over, with model B's own, by layer of model B at equal relative depth; and how well the "
    "carried direction tells model B's held-out texts apart (AUC, 95% interval).",
    "maps": "How well each map predicts the second model's stream on texts that it was not fitted on, by pair of relative depths: the share of "
    "variance in the median dimension.",
}


@styled("en")
def write_alignment_report(
    overlap: pd.DataFrame, maps: pd.DataFrame, directions: pd.DataFrame, kind: str, folder: Path
) -> None:
    """Writes figures/*.png and report.md."""
    figures = {
        "overlap_by_k": overlap_by_k(overlap),
        "overlap_by_depth": overlap_by_depth(overlap),
        "directions": direction_figure(directions, kind),
        "maps": map_figure(maps),
    }
    first = overlap.iloc[0]
    blocks: list[Block] = [
        Heading(f"{short_name(first['model_a'])} aligned to {short_name(first['model_b'])}", 1),
        Paragraph(
            "directions.safetensors holds model A's directions, carried over to model B: a sweep of model B takes it with directions= "
            "and this run's id, to be compared with a sweep of B's own directions."
        ),
        _summary(overlap),
    ]
    for name, figure in figures.items():
        save(figure, folder / "figures" / f"{name}.png")
        blocks.append(Picture(f"figures/{name}.png", CAPTIONS[name]))
    (folder / "report.md").write_text(to_markdown(blocks), encoding="utf-8")


def _summary(overlap: pd.DataFrame) -> Table:
    columns = ("overlap_before", "overlap", "permuted_mean", "permuted_q95", "null_mean", "ceiling")
    means = matched(overlap).groupby(["emotion", "k"], sort=False, as_index=False)[list(columns)].mean()
    rows = [(str(row["emotion"]), str(row["k"]), *(f"{row[name]:.3f}" for name in columns)) for row in records(means)]
    titles = ("before", "after", "labels shuffled", "their 95th percentile", "random subspaces", "ceiling")
    return Table(("emotion", "k", *titles), rows)


def overlap_by_k(overlap: pd.DataFrame) -> Figure:
    """A panel per emotion: before, after, ceiling and both nulls against k."""
    emotions = list(dict.fromkeys(overlap["emotion"]))
    figure = new_figure(max(4.6, 3.1 * len(emotions)), 3.5)
    panels = figure.subplots(1, len(emotions), squeeze=False, sharey=True)[0]
    near = matched(overlap)
    for axes, emotion in zip(panels, emotions, strict=True):
        rows = near[near["emotion"] == emotion].groupby("k").mean(numeric_only=True)
        k = rows.index.to_numpy()
        axes.fill_between(
            k, rows["permuted_mean"], rows["permuted_q95"], color=RANDOM, alpha=0.55, lw=0, label="labels shuffled"
        )
        axes.fill_between(k, rows["null_mean"], rows["null_q95"], color=MUTED, lw=0, label="random subspaces")
        axes.plot(k, rows["ceiling"], color=MUTED, lw=1, ls=(0, (4, 3)), label="ceiling (B with itself)")
        axes.plot(k, rows["overlap_before"], color=BASELINE, lw=1.3, marker="o", ms=4.5, mfc="white", label="before")
        axes.plot(k, rows["overlap"], color=PATCHED, lw=1.5, marker="D", ms=4.5, label="after")
        axes.set_xticks(k)
        axes.set_title(emotion)
        axes.set_xlabel("k (dimensions)")
        axes.set_ylim(0, 1.03)
    panels[0].set_ylabel("overlap (mean squared cosine)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
    return figure


def overlap_by_depth(overlap: pd.DataFrame) -> Figure:
    """A panel per emotion: pairs of relative depths at k = 1."""
    table = overlap[overlap["k"] == 1]
    emotions = list(dict.fromkeys(table["emotion"]))
    figure = new_figure(1.2 + 3.2 * len(emotions), 3.7)
    panels = figure.subplots(1, len(emotions), squeeze=False, sharey=True)[0]
    for axes, emotion in zip(panels, emotions, strict=True):
        rows = table[table["emotion"] == emotion]
        values, sure = (
            rows.pivot(index="layer_a", columns="layer_b", values=name) for name in ("overlap", "permuted_p")
        )
        image = _pairs(axes, values, 1.0)
        for (i, j), p in np.ndenumerate(sure.to_numpy()):
            if p < 0.05:
                axes.plot(j, i, marker="o", ms=3, color="white" if values.iloc[i, j] > 0.6 else INK)
        axes.set_title(emotion)
    panels[0].set_ylabel(f"layer of {short_name(table['model_a'].iloc[0])}")
    figure.supxlabel(f"layer of {short_name(table['model_b'].iloc[0])}")
    bar = figure.colorbar(image, ax=list(panels), pad=0.01)
    bar.ax.set_ylim(0, 1)
    bar.set_label("overlap after the map")
    return figure


def map_figure(maps: pd.DataFrame) -> Figure:
    """A panel per kind of map: held-out R^2 of the median dimension over pairs of depths."""
    kinds = list(dict.fromkeys(maps["map"]))
    figure = new_figure(1.4 + 3.4 * len(kinds), 3.7)
    panels = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        values = maps[maps["map"] == kind].pivot(index="layer_a", columns="layer_b", values="r2_median")
        image = _pairs(axes, values, 1.0)
        for (i, j), value in np.ndenumerate(values.to_numpy()):
            shade = "white" if abs(value) > 0.6 else INK
            axes.text(j, i, f"{value:.2f}".replace("0.", "."), ha="center", va="center", fontsize=7, color=shade)
        axes.set_title(kind)
    panels[0].set_ylabel(f"layer of {short_name(maps['model_a'].iloc[0])}")
    figure.supxlabel(f"layer of {short_name(maps['model_b'].iloc[0])}")
    figure.colorbar(image, ax=list(panels), pad=0.01).set_label("held-out R² (median dimension)")
    return figure


def direction_figure(directions: pd.DataFrame, kind: str) -> Figure:
    """Per emotion, by model B's layer: cosine before and after with its ceiling, and the carried direction's AUC."""
    emotions = list(dict.fromkeys(directions["emotion"]))
    figure = new_figure(8.4, 0.9 + 1.8 * len(emotions))
    panels = figure.subplots(len(emotions), 2, squeeze=False, sharex=True)
    near = matched(directions)
    for (left, right), emotion in zip(panels, emotions, strict=True):
        rows = near[near["emotion"] == emotion].sort_values("layer_b")
        layers = rows["layer_b"]
        left.axhline(0, color=MUTED, lw=0.8)
        left.plot(layers, rows["ceiling"], color=MUTED, lw=1, ls=(0, (4, 3)), label="ceiling (B with itself)")
        left.plot(
            layers, rows["cosine_before"], color=BASELINE, lw=1.3, marker="o", ms=4.5, mfc="white", label="before"
        )
        left.plot(layers, rows[f"cosine_{kind}"], color=PATCHED, lw=1.5, marker="D", ms=4.5, label=f"after ({kind})")
        left.set_ylim(-1.05, 1.05)
        right.axhline(0.5, color=MUTED, lw=0.9, ls=(0, (4, 3)))
        right.fill_between(layers, rows["auc_low"], rows["auc_high"], color=PATCHED, alpha=0.15, lw=0)
        right.plot(layers, rows["auc"], color=PATCHED, lw=1.5, marker="D", ms=4.5)
        right.set_ylim(0, 1.03)
        left.set_title(f"{emotion}: cosine with B's own")
        right.set_title(f"{emotion}: AUC on B's texts")
    for axes in panels[-1]:
        axes.set_xlabel(f"layer of {short_name(directions['model_b'].iloc[0])}")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def _pairs(axes: Axes, values: pd.DataFrame, limit: float) -> AxesImage:
    image = axes.imshow(values.to_numpy(), cmap=DIVERGING, vmin=-limit, vmax=limit, aspect="auto", origin="lower")
    axes.set_xticks(range(values.shape[1]), [str(layer) for layer in values.columns])
    axes.set_yticks(range(values.shape[0]), [str(layer) for layer in values.index])
    axes.tick_params(length=0)
    return image

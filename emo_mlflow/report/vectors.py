"""Figures and report of a model's directions: how well they read held-out texts, how large they are, how stable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from emo_mlflow.comparison.rows import records
from emo_mlflow.report.blocks import Block, Heading, Paragraph, Picture, Table, to_markdown
from emo_mlflow.report.fonts import styled
from emo_mlflow.report.style import INK, MARKERS, MUTED, new_figure, save

SHADES = ("#b35806", "#542788", "#1b7837", "#2166ac", "#762a83", "#8c510a")
NAMES = {
    "mean_diff": "mean difference",
    "lda": "whitened (LDA)",
    "logistic": "logistic probe",
}


@styled("en")
def write_vectors_report(
    readout: pd.DataFrame, subspaces: pd.DataFrame, norms: pd.DataFrame, model: str, direction: str, folder: Path
) -> None:
    """Writes figures/*.png and report.md."""
    figures = {
        "readout": (
            readout_figure(readout),
            "How well each direction tells an emotion's texts from the reference's, on texts that it was not fitted on; bands are 95% intervals.",
        ),
        "norms": (
            norm_figure(norms),
            "How large a direction is beside the stream that alpha times it is added to: at a ratio of 0.1, alpha = 1 changes "
            "a typical stream by a tenth of its length.",
        ),
        "subspaces": (
            subspace_figure(subspaces),
            "Subspaces of k principal axes: the share of all variance about the reference's mean that they explain, "
            "and their mean overlap with subspaces of resampled texts (1: the same subspace).",
        ),
    }
    blocks: list[Block] = [
        Heading(f"Directions of {model}", 1),
        Paragraph(
            f"directions.safetensors holds {direction}; a sweep takes it with directions= and this run's id. "
            "Accuracy is held out, and overlap is between resampled subspaces."
        ),
    ]
    for name, (figure, caption) in figures.items():
        save(figure, folder / "figures" / f"{name}.png")
        blocks.append(Picture(f"figures/{name}.png", caption))
    blocks += [Heading("Held-out read-out"), _best_table(readout)]
    (folder / "report.md").write_text(to_markdown(blocks), encoding="utf-8")


def _best_table(readout: pd.DataFrame) -> Table:
    rows = []
    order = readout.sort_values("auc", ascending=False, kind="stable").drop_duplicates(["emotion", "method"])
    for best in records(order.sort_index()):
        rows.append(
            (
                str(best["emotion"]),
                NAMES.get(best["method"], best["method"]),
                str(best["layer"]),
                f"{best['accuracy']:.3f} ({best['accuracy_low']:.3f} to {best['accuracy_high']:.3f})",
                f"{best['auc']:.3f} ({best['auc_low']:.3f} to {best['auc_high']:.3f})",
                str(best["n_positive"]),
            )
        )
    return Table(("emotion", "direction", "layer with the best AUC", "balanced accuracy", "AUC", "texts"), rows)


def readout_figure(readout: pd.DataFrame) -> Figure:
    """Held-out balanced accuracy by layer, a panel per emotion, a line per method."""
    emotions = list(dict.fromkeys(readout["emotion"]))
    methods = list(dict.fromkeys(readout["method"]))
    figure = new_figure(7.2, 0.9 + 1.75 * len(emotions))
    panels = figure.subplots(len(emotions), 1, squeeze=False, sharex=True)[:, 0]
    lowest = min(0.45, float(readout["accuracy_low"].min()) - 0.02)
    for axes, emotion in zip(panels, emotions, strict=True):
        for i, method in enumerate(methods):
            rows = readout[(readout["emotion"] == emotion) & (readout["method"] == method)]
            low, high = rows["accuracy_low"], rows["accuracy_high"]
            axes.fill_between(rows["layer"], low, high, color=SHADES[i % len(SHADES)], alpha=0.12, lw=0)
            axes.plot(rows["layer"], rows["accuracy"], label=NAMES.get(method, method), **_style(i))
        axes.axhline(0.5, color=MUTED, lw=0.9, ls=(0, (4, 3)))
        axes.set_ylim(lowest, 1.02)
        axes.set_title(emotion)
    panels[0].text(
        0.995, 0.5, "chance", transform=panels[0].get_yaxis_transform(), ha="right", va="bottom", color=MUTED
    )
    panels[-1].set_xlabel("layer")
    figure.supylabel("balanced accuracy on held-out texts")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(4, len(labels)))
    return figure


def norm_figure(norms: pd.DataFrame) -> Figure:
    """Norms of directions and of the residual stream by layer, and their ratio."""
    figure = new_figure(7.2, 4.6)
    top, bottom = figure.subplots(2, 1, sharex=True)
    first = norms[norms["emotion"] == norms["emotion"].iloc[0]]
    top.plot(first["layer"], first["residual_norm"], color=INK, lw=1.6, label="residual stream, a typical token")
    for i, (emotion, rows) in enumerate(norms.groupby("emotion", sort=False)):
        top.plot(rows["layer"], rows["direction_norm"], label=f"direction: {emotion}", **_style(i))
        bottom.plot(rows["layer"], rows["ratio"], **_style(i))
    if (norms[["direction_norm", "residual_norm"]] > 0).all(axis=None):
        top.set_yscale("log")
    top.set_ylabel("Euclidean norm")
    bottom.set_ylabel("direction / residual")
    bottom.set_ylim(bottom=0)
    bottom.set_xlabel("layer")
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def subspace_figure(subspaces: pd.DataFrame) -> Figure:
    """By layer, a line per k: the share of the variance explained, and the overlap with resampled subspaces."""
    emotions = list(dict.fromkeys(subspaces["emotion"]))
    largest = int(subspaces["k"].max())
    ranks = sorted({2**i for i in range(largest.bit_length())} | {largest})[-5:]
    figure = new_figure(8.4, 0.9 + 1.75 * len(emotions))
    panels = figure.subplots(len(emotions), 2, squeeze=False, sharex=True, sharey=True)
    titles = {"explained": "share of variance explained", "stability": "overlap with resampled subspaces"}
    for row, emotion in zip(panels, emotions, strict=True):
        for axes, (column, title) in zip(row, titles.items(), strict=True):
            for i, k in enumerate(ranks):
                table = subspaces[(subspaces["emotion"] == emotion) & (subspaces["k"] == k)]
                axes.plot(table["layer"], table[column], label=f"k = {k}", **_style(i))
            axes.set_title(f"{emotion}: {title}")
            axes.set_ylim(0, 1.04)
    for axes in panels[-1]:
        axes.set_xlabel("layer")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(ranks))
    return figure


def _style(i: int) -> dict[str, Any]:
    return {"color": SHADES[i % len(SHADES)], "marker": MARKERS[i % len(MARKERS)], "ms": 4.0, "lw": 1.2}

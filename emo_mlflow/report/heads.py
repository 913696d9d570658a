"""Figures and report of a model's heads: layer x head maps, and the strongest heads with their intervals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from emo_mlflow.comparison.records import records
from emo_mlflow.report.blocks import Block, Heading, Paragraph, Picture, Table, to_markdown
from emo_mlflow.report.style import BASELINE, DIVERGING, INK, MUTED, PATCHED, new_figure, save

STRONGEST = 12


def write_heads_report(effects: pd.DataFrame, chosen: pd.DataFrame, model: str, target: int, folder: Path) -> None:
    """Writes figures/*.png and report.md.

    Args:
        effects: emotion, layer, head, direct_effect, low, high of every head.
        chosen: the rows of the heads that generation tests.
    """
    if effects["direct_effect"].isna().all():
        text = "This model normalises what attention writes: its heads have no direct effects, and candidates are all heads."
        (folder / "report.md").write_text(
            to_markdown([Heading(f"Heads of {model}", 1), Paragraph(text)]), encoding="utf-8"
        )
        return
    share = f"share of the emotion's displacement after block {target}"
    save(layer_head_map(effects, "direct_effect", share, chosen), folder / "figures" / "layer_head_map.png")
    save(strongest_heads(effects, share), folder / "figures" / "strongest_heads.png")
    blocks: list[Block] = [
        Heading(f"Heads of {model}", 1),
        Paragraph(
            "A head's direct effect is what it writes itself along the emotion's direction, on texts that this was not fitted on, as a share "
            "of the whole difference between the emotion's texts and the reference's. Heads, MLPs and the embedding together make 1; what a head "
            "does through later blocks is not in it, and is what ablation in generation shows."
        ),
        Picture("figures/layer_head_map.png", "Direct effect of every head; framed: the heads chosen as candidates."),
        Picture("figures/strongest_heads.png", "The strongest heads of each emotion, with 95% intervals over texts."),
        Heading("Candidates"),
        Table(
            ("emotion", "layer", "head", "direct effect", "95% interval", "d"),
            [
                (
                    str(row["emotion"]),
                    str(row["layer"]),
                    str(row["head"]),
                    f"{row['direct_effect']:+.4f}",
                    f"{row['low']:+.4f} to {row['high']:+.4f}",
                    f"{row['d']:+.2f}",
                )
                for row in records(chosen.groupby("emotion", sort=False).head(STRONGEST))
            ],
        ),
    ]
    (folder / "report.md").write_text(to_markdown(blocks), encoding="utf-8")


def layer_head_map(table: pd.DataFrame, value: str, label: str, framed: pd.DataFrame | None = None) -> Figure:
    """A panel per emotion: layers across, heads down, `value` as colour; heads in `framed` get a frame."""
    emotions = list(dict.fromkeys(table["emotion"]))
    layers, heads = (sorted(table[name].unique()) for name in ("layer", "head"))
    width = min(12.0, 2.2 + 0.3 * len(layers))
    figure = new_figure(width, 0.9 + len(emotions) * (0.65 + 0.17 * len(heads)))
    panels = figure.subplots(len(emotions), 1, squeeze=False, sharex=True)[:, 0]
    limit = float(np.nanmax(table[value].abs(), initial=1e-6))
    for axes, emotion in zip(panels, emotions, strict=True):
        grid = table[table["emotion"] == emotion].pivot(index="head", columns="layer", values=value)
        values = grid.reindex(index=heads, columns=layers).to_numpy(dtype=float)
        image = axes.imshow(values, cmap=DIVERGING, vmin=-limit, vmax=limit, aspect="auto")
        axes.set_facecolor("#dddddd")
        axes.set_title(emotion, fontsize=10, fontweight="bold", loc="left")
        axes.set_xticks(range(0, len(layers), step := max(1, -(-len(layers) // 24))), [str(x) for x in layers[::step]])
        axes.set_yticks(range(0, len(heads), gap := max(1, -(-len(heads) // 12))), [str(x) for x in heads[::gap]])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        if framed is not None:
            own = framed[framed["emotion"] == emotion]
            for layer, head in zip(own["layer"], own["head"], strict=True):
                corner = (layers.index(layer) - 0.5, heads.index(head) - 0.5)
                axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=INK, lw=1.0))
    panels[-1].set_xlabel("layer")
    figure.supylabel("head", fontsize=9)
    figure.colorbar(image, ax=list(panels), pad=0.01, aspect=35).set_label(label)
    return figure


def strongest_heads(effects: pd.DataFrame, label: str) -> Figure:
    """Per emotion the heads with the largest direct effects, with their intervals."""
    emotions = list(dict.fromkeys(effects["emotion"]))
    count = min(STRONGEST, int((effects["emotion"] == emotions[0]).sum()))
    figure = new_figure(max(4.5, 3.0 * len(emotions)), 1.0 + 0.24 * count)
    panels = figure.subplots(1, len(emotions), squeeze=False)[0]
    for axes, emotion in zip(panels, emotions, strict=True):
        rows = effects[effects["emotion"] == emotion].sort_values("rank").head(count)
        y = np.arange(count)
        axes.axvline(0, color=MUTED, lw=0.8)
        axes.hlines(y, rows["low"], rows["high"], color=INK, lw=1.1)
        colors = [PATCHED if effect > 0 else BASELINE for effect in rows["direct_effect"]]
        axes.scatter(rows["direct_effect"], y, marker="D", s=26, color=colors, zorder=3)
        axes.set_yticks(y, [f"{layer}.{head}" for layer, head in zip(rows["layer"], rows["head"], strict=True)])
        axes.set_ylim(count - 0.4, -0.6)
        axes.set_title(emotion, fontsize=10, fontweight="bold", loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("layer.head")
    figure.supxlabel(label, fontsize=9)
    return figure

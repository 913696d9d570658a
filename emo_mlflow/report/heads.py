"""Report of a sweep over heads: where direct effects are, what replacing heads did to the text, and whether the two agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from emo_mlflow.common.names import short_name
from emo_mlflow.comparison.rows import records
from emo_mlflow.report.agreement import agreement_paragraphs
from emo_mlflow.report.blocks import Block, Bullets, Heading, Paragraph, Picture, Table, to_markdown
from emo_mlflow.report.comparison_text import number
from emo_mlflow.report.findings import SMALLEST_EFFECT, effect_table, findings
from emo_mlflow.report.fonts import styled
from emo_mlflow.report.style import BASELINE, DIVERGING, INK, MUTED, PATCHED, RANDOM, new_figure, save
from emo_mlflow.report.sweep import example_table, verdict, write_examples
from emo_mlflow.scoring.targets import target_metric
from emo_mlflow.steering.operations import HEAD_REPLACEMENTS
from emo_mlflow.sweeping.results import SweepResult
from emo_mlflow.sweeping.schemas import FLUENCY
from emo_mlflow.sweeping.swept import SweptHeads

STRONGEST = 12


@styled("en")
def write_heads_report(result: SweepResult, heads: SweptHeads, folder: Path) -> None:
    """Writes report.md, examples.json (MLflow's table format), examples.html and figures/*.png into `folder`."""
    effects, target = heads.effects, heads.target_layer
    tested, found = tested_heads(result, effects), findings(result)
    examples = example_table(result, found)
    write_examples(examples, folder)
    share = f"share of the emotion's displacement after block {target}"
    done = HEAD_REPLACEMENTS[result.config.operation].done
    blocks: list[Block] = [
        Heading(f"Heads of {short_name(result.config.model)}", 1),
        Bullets([verdict(item) for item in found]),
        Paragraph(
            f"Each head's output was {done}, before the output projection. Each line is the head whose replacement "
            "changed that emotion's own label most, of all that were tested, so its size is too large; a comparison run "
            "(emo-mlflow compare --phase head) tests all of them together."
        ),
    ]
    if len(tested):
        save(layer_head_map(tested, "mean_diff", "mean change of the emotion's own label"), folder / "figures" / "change.png")
        text = "Mean change of the emotion's own label when a head is replaced, the chosen ones and the controls. Grey: not tested."
        blocks.append(Picture("figures/change.png", text))
    if effects["direct_effect"].isna().all():
        blocks.append(Paragraph("This model normalises what attention writes: its heads have no direct effects, and all were tested."))
    else:
        chosen = tested[tested["kind"] == "emotion"]
        save(layer_head_map(effects, "direct_effect", share, chosen), folder / "figures" / "direct_effect.png")
        save(strongest_heads(effects, share), folder / "figures" / "strongest_heads.png")
        blocks += [
            Heading("Direct effects"),
            Paragraph(
                "A head's direct effect is what it writes itself along the emotion's direction, on texts that this was not fitted on, as a "
                "share of the whole difference between the emotion's texts and the reference's. Heads, MLPs and the embedding together make 1; "
                "what a head does through later blocks is not in it."
            ),
            Picture("figures/direct_effect.png", "Direct effect of every head; framed: the heads that were chosen to be replaced."),
            Picture("figures/strongest_heads.png", "The strongest heads of each emotion, with 95% intervals over texts."),
        ]
        if len(tested):
            save(direct_against_change(tested, share), folder / "figures" / "direct_against_change.png")
            text = "Direct effect of a head against what replacing it changed. Grey: control heads, drawn at random."
            blocks.append(Picture("figures/direct_against_change.png", text))
    trust = agreement_paragraphs(result.facts, set(tested["metric"]))
    blocks += [Heading("Heads that were replaced"), _table(tested), *trust, *_settings(result)]
    (folder / "report.md").write_text(to_markdown(blocks), encoding="utf-8")


def tested_heads(result: SweepResult, effects: pd.DataFrame) -> pd.DataFrame:
    """The conditions of emotions that have a metric of their own, with its mean_diff and d_z, the rise of broken text, and their direct effects."""
    table = effect_table(result)
    metrics = set(table["metric"])
    own = table[[target_metric(e, metrics) == m for e, m in zip(table["emotion"], table["metric"], strict=True)]]
    broken = table[table["metric"] == FLUENCY["broken"]].set_index("condition_id")["mean_diff"]
    own = own.assign(broken_rise=own["condition_id"].map(broken), layer=own["layer"].astype(int), head=own["head"].astype(int))
    return own.merge(effects, on=["emotion", "layer", "head"], how="left")


def _table(tested: pd.DataFrame) -> Table:
    chosen = tested[tested["kind"] == "emotion"].sort_values(["emotion", "rank"]).groupby("emotion", sort=False).head(STRONGEST)
    columns = ("emotion", "layer", "head", "direct effect", "95% interval", "change of own label", "d_z", "broken text")
    rows = [
        (
            str(row["emotion"]),
            str(row["layer"]),
            str(row["head"]),
            number(row["direct_effect"], "{:+.4f}"),
            "" if pd.isna(row["low"]) else f"{row['low']:+.4f} to {row['high']:+.4f}",
            number(row["mean_diff"], "{:+.3f}"),
            number(row["d_z"], "{:+.2f}"),
            number(row["broken_rise"], "{:+.3f}"),
        )
        for row in records(chosen)
    ]
    return Table(columns, rows)


def _settings(result: SweepResult) -> list[Block]:
    config = result.config
    settings = {
        "prompts": f"{len(result.prompts)} ({result.facts['prompt_source']}; {result.facts['prompt_split']})",
        "conditions": f"{len(result.conditions)}, cells {result.facts['n_cells']}",
        "layers": ", ".join(map(str, config.layers)),
        "scope": config.scope,
        "new tokens": f"{config.sequence_length} (at least {config.min_new_tokens}), temperature {config.temperature:g}",
        "scorers": ", ".join(config.scorers),
        "device": f"{result.facts['device']}, {config.dtype}",
        "model fingerprint": str(result.facts["model_fingerprint"]),
    }
    return [Heading("Settings"), Table(("setting", "value"), list(settings.items()))]


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
        axes.set_title(emotion)
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
    figure.supylabel("head")
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
        axes.set_yticks(y, [f"L{layer} H{head}" for layer, head in zip(rows["layer"], rows["head"], strict=True)])
        axes.set_ylim(count - 0.4, -0.6)
        axes.locator_params(axis="x", nbins=4)
        axes.set_title(emotion)
    figure.supxlabel(label)
    return figure


def direct_against_change(tested: pd.DataFrame, label: str) -> Figure:
    """A panel per emotion: what a head writes itself, against what replacing it changed; the strongest changes are named."""
    emotions = list(dict.fromkeys(tested["emotion"]))
    figure = new_figure(max(4.5, 3.2 * len(emotions)), 3.2)
    for axes, emotion in zip(figure.subplots(1, len(emotions), squeeze=False, sharey=True)[0], emotions, strict=True):
        own = tested[tested["emotion"] == emotion]
        for kind, color in (("random", RANDOM), ("emotion", PATCHED)):
            rows = own[own["kind"] == kind]
            axes.scatter(rows["direct_effect"], rows["mean_diff"], s=22, color=color, lw=0, zorder=2 if kind == "random" else 3)
        named = own[(own["kind"] == "emotion") & (own["mean_diff"].abs() >= SMALLEST_EFFECT)]
        for row in records(named.loc[named["mean_diff"].abs().sort_values(ascending=False).index].head(3)):
            text = f"L{row['layer']} H{row['head']}"
            axes.annotate(text, (row["direct_effect"], row["mean_diff"]), xytext=(4, 3), textcoords="offset points", fontsize=7)
        axes.axhline(0, color=MUTED, lw=0.8, zorder=1)
        axes.axvline(0, color=MUTED, lw=0.8, zorder=1)
        axes.locator_params(axis="x", nbins=4)
        axes.set_title(emotion)
    figure.supxlabel(label)
    figure.supylabel("mean change of the own label")
    return figure

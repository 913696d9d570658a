"""What a person sees of a comparison: tables as files, figures, report.md and a self-contained report.html."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from emo_mlflow.common.csv_files import write_csv
from emo_mlflow.comparison import Comparison
from emo_mlflow.comparison.families import SIGNIFICANT
from emo_mlflow.report import comparison_curves as curves
from emo_mlflow.report import comparison_maps as maps
from emo_mlflow.report import comparison_points as points
from emo_mlflow.report import comparison_text as words
from emo_mlflow.report.blocks import Block, Heading, Paragraph, Picture, to_html, to_markdown
from emo_mlflow.report.comparison_answer import answer
from emo_mlflow.report.fonts import families, styled
from emo_mlflow.report.highlights import SMALLEST_CHANGE, examples, highlights, strongest
from emo_mlflow.report.style import save
from emo_mlflow.report.texts import texts
from emo_mlflow.statistics.power import TARGET

MOST_EFFECTS = 24
EXAMPLES = 3
PARQUET = ("effect_sizes",)
AS_JSON = ("power_requirements",)


def check_language(language: str) -> None:
    """Before anything is computed: is there a report in this language, and a font to draw it with?

    Raises:
        UserError: if not.
    """
    texts(language)
    families(language)


def write_comparison(comparison: Comparison, folder: Path, language: str = "en") -> None:
    """Writes every table, figure and report of a comparison into a folder.

    Raises:
        UserError: for a language without words or font.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_tables(comparison, folder)
    blocks = report_blocks(comparison, folder, language)
    (folder / "report.md").write_text(to_markdown(blocks), encoding="utf-8")
    (folder / "report.html").write_text(to_html(blocks, folder, language), encoding="utf-8")


def write_tables(comparison: Comparison, folder: Path) -> None:
    """Writes each table that has rows as CSV, effect_sizes as Parquet too, and power_analysis.json."""
    for name, table in comparison.tables.items():
        if name in PARQUET:
            table.to_parquet(folder / f"{name}.parquet", index=False)
        if name not in AS_JSON and len(table):
            write_csv(table, folder / f"{name}.csv")
    summary = {
        "alpha": SIGNIFICANT,
        "target_power": TARGET,
        "requirements": json.loads(
            comparison.tables["power_requirements"].to_json(orient="records", double_precision=15)
        ),
        "post_hoc_power_csv": "power_analysis.csv",
    }
    (folder / "power_analysis.json").write_text(json.dumps(summary, indent=2), encoding="utf-8")


def report_blocks(comparison: Comparison, folder: Path, language: str) -> list[Block]:
    """The report, its figures written into `folder`/figures."""
    t = texts(language, comparison.phase)
    shown = highlights(comparison)
    count = len(comparison.sources)
    title = t["title_one" if count == 1 else "title"].format(count=count)
    return [
        Heading(title, 1),
        Heading(t["answer"]),
        *(Paragraph(sentence) for sentence in answer(comparison, t)),
        *words.restrictions(comparison, t),
        *words.recommended(comparison, t),
        *_figures(comparison, shown, folder, language),
        *words.example_texts(examples(comparison, shown, EXAMPLES), t),
        *words.between(comparison, t),
        *words.power_table(comparison, t),
        *words.sweeps(comparison, t),
        *words.methods(comparison, t),
    ]


def _figures(comparison: Comparison, shown: pd.DataFrame, folder: Path, language: str) -> list[Block]:
    t = texts(language, comparison.phase)
    heads = comparison.phase == "head"
    blocks: list[Block] = [Heading(t["figures"])]
    with styled(language):
        figures = {
            "layer_maps": None if heads else maps.layer_maps(comparison, t),
            "head_maps": maps.head_maps(comparison, t) if heads else None,
            "forest": points.forest(strongest(comparison, MOST_EFFECTS), t),
            "random_null": points.random_null(comparison, shown, t),
            "layer_profiles": None if heads else curves.layer_profiles(comparison, shown, t),
            "dose_curves": None if heads else curves.dose_curves(comparison, shown, t),
            "pareto": points.pareto(comparison, t),
            "metric_matrix": maps.metric_matrix(comparison, shown, t),
            "overlap_curves": curves.overlap_curves(comparison, t),
        }
        for name, figure in figures.items():
            if figure is not None:
                save(figure, folder / "figures" / f"{name}.png")
                blocks.append(Picture(f"figures/{name}.png", t[f"caption_{name}"].format(smallest=SMALLEST_CHANGE)))
    if figures["dose_curves"] is None and not heads:
        blocks.append(Paragraph(t["no_dose"]))
    return blocks

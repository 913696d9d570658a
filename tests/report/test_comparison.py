"""What a person sees of a comparison: files, words in two languages, and figures that hold what they should."""

from __future__ import annotations

import base64
import json
import re
import string
import warnings
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from synthetic import as_source, synthetic_sweep

from emo_mlflow.common.csv_files import without_formulas
from emo_mlflow.comparison import Comparison, Note, compare_sweeps
from emo_mlflow.comparison.k_selection import k_selection
from emo_mlflow.errors import UserError
from emo_mlflow.report import fonts
from emo_mlflow.report.blocks import Bullets, Heading, Paragraph, Table, to_html, to_markdown
from emo_mlflow.report.comparison import check_language, write_comparison
from emo_mlflow.report.comparison_text import answer
from emo_mlflow.report.highlights import strongest
from emo_mlflow.report.texts import LANGUAGES, texts

HOSTILE = "<script>alert(1)</script> | `x` *y* ![a](b) \n# z"


@cache
def comparison() -> Comparison:
    """Two models, one of whose texts hold markup."""
    alphas = (1.0, 2.0, 4.0)
    first = as_source(synthetic_sweep("model-a", alphas=alphas, layers=(1, 3, 5)))
    first = replace(first, completions=first.completions.assign(completion=HOSTILE))
    second = as_source(synthetic_sweep("model-b", n_layers=8, alphas=alphas, layers=(2, 4)))
    return compare_sweeps([first, second], n_bootstrap=100)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison written in English."""
    path = tmp_path_factory.mktemp("comparison")
    write_comparison(comparison(), path)
    return path


def test_every_file_is_written(folder: Path) -> None:
    """Guards against a table that is computed and never reaches the person."""
    files = {path.name for path in folder.rglob("*") if path.is_file()}
    tables = {
        f"{n}.csv"
        for n in [
            "effect_sizes",
            "specificity",
            "selectivity",
            "dose",
            "tradeoff",
            "recommendations",
            "power_analysis",
            "model_contrasts",
            "model_summary",
        ]
    }
    figures = {
        f"{n}.png"
        for n in ["layer_maps", "forest", "random_null", "layer_profiles", "dose_curves", "pareto", "metric_matrix"]
    }
    assert files == tables | figures | {"effect_sizes.parquet", "power_analysis.json", "report.md", "report.html"}
    pd.testing.assert_frame_equal(
        pd.read_parquet(folder / "effect_sizes.parquet"), comparison().tables["effect_sizes"], check_dtype=False
    )
    requirements = json.loads((folder / "power_analysis.json").read_text())["requirements"]
    assert {"target_effect_size", "required_n_effective", "power"} <= set(requirements[0])


class Tags(HTMLParser):
    """Collects the tags and image sources of a document."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_html_is_one_file_and_runs_nothing_that_a_model_wrote(folder: Path) -> None:
    """Guards against a report that loses its figures when it is sent, and against generated markup that runs."""
    page = (folder / "report.html").read_text(encoding="utf-8")
    found = Tags()
    found.feed(page)
    assert "script" not in found.tags and found.tags.count("img") == 7
    assert all(source.startswith("data:image/png;base64,") for source in found.sources)
    assert base64.b64decode(found.sources[0].partition(",")[2]).startswith(b"\x89PNG")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_generated_text_stays_in_its_cell_of_the_markdown_table(folder: Path) -> None:
    """Guards against pipes and newlines that break the table, and images that a model asks for."""
    lines = (folder / "report.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if "alert(1)" in line]
    assert rows and all(len(re.findall(r"(?<!\\)\|", row)) == 6 for row in rows)
    assert "<script>" not in "".join(lines) and not any("![a](b)" in line for line in lines)


def test_blocks_escape_everywhere() -> None:
    """Guards against a kind of block that forgets to."""
    blocks = [Heading(HOSTILE), Paragraph(HOSTILE), Bullets([HOSTILE]), Table([HOSTILE], [[HOSTILE]])]
    found = Tags()
    found.feed(to_html(blocks, Path(), "en"))
    assert "script" not in found.tags
    assert "<script>" not in to_markdown(blocks)
    assert to_markdown([Paragraph("d_z = 0.5 (+0.1), a_b")]) == "d_z = 0.5 (+0.1), a_b\n"


def test_csv_cells_are_no_formulas() -> None:
    """Guards against a model whose name a spreadsheet runs; numbers stay numbers."""
    table = without_formulas(pd.DataFrame({"model": ["=HYPERLINK(1)", "-2+3", "gpt2"], "x": [-1.0, 2.0, 3.0]}))
    assert table["model"].tolist() == ["'=HYPERLINK(1)", "'-2+3", "gpt2"] and table["x"].tolist() == [-1.0, 2.0, 3.0]


def test_the_answer_is_three_sentences_that_say_what_was_found() -> None:
    """Guards against an answer that does not follow the tables."""
    sentences = answer(comparison(), texts("en"))
    best = comparison().tables["recommendations"].sort_values("gain").iloc[-1]
    assert len(sentences) == 3 and all(sentence.count(". ") == 0 for sentence in sentences)
    assert (
        "In 6 of 6 cases" in sentences[0] and f"{best['effect']:+.2f}" in sentences[0] and best["model"] in sentences[0]
    )
    found = int((comparison().tables["effect_sizes"]["p_bh"] < 0.05).sum())
    assert f"number {found}," in sentences[1] and "too few" in sentences[1]
    assert "12 prompts" in sentences[2]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"effect": 0.0}, "more than every random direction of the same length did"),
        ({"effect": 0.0, "n_random": 0}, "own label significantly after correction without breaking the text."),
        ({"n_random": 0}, "no random directions were swept"),
        ({"emotions": ("pirate",)}, "No scorer has a label"),
    ],
)
def test_the_answer_does_not_claim_more_than_there_is(settings: dict[str, object], words: str, tmp_path: Path) -> None:
    """Guards against reports that fail, or boast, where nothing rose, nothing was drawn, or nothing measures the emotion."""
    options = {"emotions": ("anger",), "alphas": (1.0,), "layers": (1, 2, 3), **settings}
    found = compare_sweeps([as_source(synthetic_sweep("model-a", **options))], n_bootstrap=50)
    write_comparison(found, tmp_path)
    assert words in answer(found, texts("en"))[0]
    assert "one α" in (tmp_path / "report.md").read_text(encoding="utf-8")


def fields(template: str) -> set[str]:
    """The names that a template is filled with."""
    return {name for _, name, _, _ in string.Formatter().parse(template) if name}


def test_languages_say_the_same() -> None:
    """Guards against a key or a number that one language lacks."""
    english, japanese = LANGUAGES["en"], LANGUAGES["ja"]
    assert english.keys() == japanese.keys()
    for key, template in english.items():
        assert fields(template) == fields(japanese[key]), key
        assert template.count("|") == japanese[key].count("|"), key


def test_every_note_has_words() -> None:
    """Guards against a restriction that is noted by the comparison and crashes the report."""
    source = (Path(__file__).parents[2] / "emo_mlflow" / "comparison" / "sources.py").read_text()
    codes = set(re.findall(r'Note\(\s*"(\w+)"', source))
    assert len(codes) >= 7 and codes <= LANGUAGES["en"].keys()
    assert all(isinstance(note, Note) for note in comparison().notes)


def test_japanese_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Guards against boxes in place of glyphs: matplotlib warns of each that no font has, and here that is an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*[Gg]lyph.*")
        write_comparison(comparison(), tmp_path, "ja")
    assert "findfont" not in caplog.text
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<html lang="ja">' in page and "結論" in page and "The answer" not in page
    monkeypatch.setattr(fonts, "_japanese", lambda: None)
    with pytest.raises(UserError, match="matplotlib-fontja"):
        check_language("ja")
    with pytest.raises(UserError, match="en or ja"):
        check_language("fr")


def test_figures_are_pictures_with_something_on_them(folder: Path) -> None:
    """Guards against empty canvases, and figures that lose their marks in greyscale."""
    for path in folder.glob("figures/*.png"):
        with Image.open(path) as picture:
            shades = picture.convert("L").getcolors(maxcolors=256)
        assert picture.width > 500 and shades is not None
        assert sum(count for count, shade in shades if shade < 100) > 1000, path.name


def test_alignment_has_a_figure(tmp_path: Path) -> None:
    """Guards against a k-selection that nobody sees."""
    rows = [
        {"model_a": "a", "model_b": "b", "emotion": e, "k": k, "layer_a": i, "layer_b": i,
         "overlap": 0.2 + 0.02 * i, "null_mean": 0.1, "null_q95": 0.12}
        for e in ("anger", "gratitude") for k in (1, 2, 3) for i in range(4)
    ]  # fmt: skip
    found = replace(comparison(), tables={**comparison().tables, "k_selection": k_selection(pd.DataFrame(rows), 100)})
    write_comparison(found, tmp_path)
    assert (tmp_path / "figures" / "overlap_curves.png").is_file() and (tmp_path / "k_selection.csv").is_file()


def test_the_forest_shows_own_labels_first_and_no_broken_text() -> None:
    """Guards against a figure of scores that move by 0.0001, or of conditions whose text is noise, because their d_z is large."""
    table = strongest(comparison(), 24)
    own = table[~table["other"]]
    assert len(own) == 6 and table.index.tolist()[:6] == own.index.tolist()
    assert (table["alpha"] < 4).all() and (table["mean_diff"].abs() >= 0.01).all()
    assert not table["metric"].str.startswith("fluency.").any()
    assert not table.duplicated(["model", "emotion", "metric"]).any()

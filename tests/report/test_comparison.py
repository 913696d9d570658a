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
from synthetic import as_source, synthetic_sweep, with_combination

from emo_mlflow.common.csv_files import without_formulas
from emo_mlflow.comparison import Comparison, Note, compare_sweeps
from emo_mlflow.comparison.k_selection import k_selection
from emo_mlflow.errors import UserError
from emo_mlflow.report import fonts
from emo_mlflow.report.blocks import Bullets, Heading, Paragraph, Table, to_html, to_markdown
from emo_mlflow.report.comparison import check_language, write_comparison
from emo_mlflow.report.comparison_answer import answer
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


def words(options: dict[str, object], language: str = "en", folder: Path | None = None, draws: int = 19) -> str:
    """The answer, of one emotion at three layers and one strength unless said otherwise; written to a folder as a report if there is one."""
    defaults = {"emotions": ("anger",), "alphas": (1.0,), "layers": (1, 2, 3), "n_random": draws}
    found = compare_sweeps([as_source(synthetic_sweep("model-a", **{**defaults, **options}))], n_bootstrap=50)
    if folder is not None:
        write_comparison(found, folder, language)
    return " ".join(answer(found, texts(language)))


@pytest.mark.parametrize(
    ("bonus", "english", "japanese"),
    [
        (0.4, "together they bring it higher than the sum of the two", "和より高くなる"),
        (-0.4, "together they bring it lower than the sum of the two", "和より低くなる"),
        (0.0, "that they do more or less together than the sum of the two is not shown", "和と異なることは示されていない"),
    ],
)
def test_two_directions_together_are_said_to_do_what_the_test_shows(bonus, english, japanese) -> None:
    """Its figures are the table's; without a combination there is no sentence."""
    found = compare_sweeps([with_combination((1.0, 0.5), bonus)], n_bootstrap=50)
    row = found.tables["interactions"].set_index("metric").loc["goemotions.gratitude"]
    said = [text for text in answer(found, texts("en")) if "alone changes" in text]
    assert [text.split(" alone changes ")[1].split()[0] for text in said] == ["goemotions.gratitude", "goemotions.anger"]
    assert english in said[0] and f"gratitude alone changes goemotions.gratitude by {row['effect_first']:+.2f}, anger alone" in said[0]
    assert f"beyond the sum {row['interaction']:+.2f}" in said[0] and f"p = {row['p_holm']:.3f}" in said[0] and "largest of 1 conditions" in said[0]
    assert "is not shown" in said[1]
    assert any(japanese in text and "gratitude" in text for text in answer(found, texts("ja")))
    assert "alone changes" not in words({})


def test_nothing_is_said_of_what_directions_do_together_where_they_do_nothing() -> None:
    found = compare_sweeps([with_combination((1.0, 1.0), 0.4)], n_bootstrap=50)
    table = found.tables["interactions"]
    small = table.assign(**{name: 0.001 for name in ("effect_first", "effect_second", "effect_both")})
    text = " ".join(answer(replace(found, tables={**found.tables, "interactions": small}), texts("en")))
    assert "none of them changes it by 0.02 or more" in text and "higher than the sum" not in text


def test_the_answer_says_what_was_found(tmp_path: Path) -> None:
    """Guards against an answer that does not follow the tables."""
    text = words({}, folder=tmp_path)
    row = pd.read_csv(tmp_path / "recommendations.csv").iloc[0]
    assert text.startswith("Specific to the direction in 1 of 1 cases (a model and an emotion): anger (model-a).")
    assert f"goemotions.anger in model-a, {row['effect']:+.2f} (95% interval {row['low']:+.2f} to {row['high']:+.2f}), at layer 3, α = 1." in text
    assert "searches the same 3 conditions does as much with p = 0.050 (the least that 19 draws allow), and 0.050 after" in text
    effects = pd.read_csv(tmp_path / "effect_sizes.csv")
    own, other = (effects[effects["own"] == value] for value in (True, False))
    holm, bh = ([int((part[column] <= 0.05).sum()) for part in (own, other)] for column in ("p_holm", "p_bh"))
    tested = [int(part["p_permutation"].notna().sum()) for part in (own, other)]
    assert f"of {tested[0]} tests of own labels, {holm[0]} are significant by Holm and {bh[0]} by Benjamini-Hochberg" in text
    assert f"of {tested[1]} tests of other scores, {holm[1]} and {bh[1]}" in text and "Own labels are corrected by themselves." in text
    assert "With 12 prompts" in text and "best of up to 3 on the same prompts" in text


@pytest.mark.parametrize(
    ("settings", "draws", "said", "not_said"),
    [
        ({}, 3, "In 1 the own label rises against the baseline (Holm), which any direction might bring about: anger (model-a).", "Specific"),
        ({}, 3, "p = 0.250 (the least that 3 draws allow)", "every random direction"),
        ({"effect": 0.0}, 19, "In none of 1 cases (a model and an emotion) is it shown", "Specific"),
        ({"effect": 0.0}, 0, "no random directions were swept", "Specific"),
        ({}, 0, "Whether a random direction does the same is unknown.", "Specific"),
        ({"emotions": ("pirate",)}, 19, "No scorer has a label", "Specific"),
        ({"alphas": (-1.0,)}, 19, "label falls more than under random directions", "rises"),
        ({"settings": {"operation": "project_out"}, "effect": -0.3}, 19, "The largest fall in whole text", "rises"),
    ],
)
def test_the_answer_does_not_claim_more_than_there_is(
    settings: dict[str, object], draws: int, said: str, not_said: str, tmp_path: Path
) -> None:
    """Guards against reports that fail, or boast, where nothing rose, nothing was drawn, draws are few, or nothing measures the emotion."""
    text = words(settings, folder=tmp_path, draws=draws)
    assert said in text and not_said not in text
    assert "one α" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_draws_that_break_the_text_are_named_as_a_weak_control() -> None:
    """Guards against an effect beyond random directions whose texts are noise."""
    source = as_source(synthetic_sweep("model-a", emotions=("anger",), alphas=(1.0,), layers=(2, 3), n_random=19))
    drawn = set(source.conditions.loc[source.conditions["kind"] == "random", "condition_id"])
    broken = source.completions["broken"].where(~source.completions["condition_id"].isin(drawn), 0.9)
    text = answer(compare_sweeps([replace(source, completions=source.completions.assign(broken=broken))], n_bootstrap=2), texts("en"))
    assert "100% of the random directions there break the text" in text[1] and "Specific" not in text[0]


def test_the_restrictions_say_how_many_draws_and_prompts_the_corrections_want(tmp_path: Path) -> None:
    """Guards against "what restricts this comparison: nothing" of 30 draws and 148 tests, whose limit is 148 / 0.05 - 1."""
    words({"layers": (0, 1, 2, 3, 4, 5), "n_random": 30, "n_prompts": 20}, folder=tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    restrictions = text.split("## What restricts this comparison")[1].split("\n## ")[0]
    assert "30 random directions are too few for single conditions. With 6 tests of own labels" in restrictions
    assert "from 119 draws on" in restrictions and "Nothing" not in restrictions
    words({"layers": (3,), "n_random": 19, "n_prompts": 20}, folder=tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "Nothing: the sweeps share" in text.split("## What restricts this comparison")[1].split("\n## ")[0]
    assert "(50 resamples" in text


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
    sources = sorted((Path(__file__).parents[2] / "emo_mlflow" / "comparison").glob("*.py"))
    codes = {code for source in sources for code in re.findall(r'Note\(\s*"(\w+)"', source.read_text())}
    assert len(codes) >= 9 and codes <= LANGUAGES["en"].keys()
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
        {"model_a": "a", "model_b": "b", "emotion": e, "k": k, "layer_a": i, "layer_b": j,
         "overlap": 0.2 + 0.02 * i, "null_mean": 0.1, "null_q95": 0.12}
        for e in ("anger", "gratitude") for k in (1, 2, 3) for i in range(4) for j in range(3)
    ]  # fmt: skip
    found = replace(comparison(), tables={**comparison().tables, "k_selection": k_selection(pd.DataFrame(rows))})
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

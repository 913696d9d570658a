"""Names and generated texts in reports and figures are shown as they are, and are never markup."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from synthetic import on_disk, synthetic_sweep

from emo_mlflow.common.names import one_line, printable
from emo_mlflow.report.blocks import Bullets, Heading, Paragraph, Table, to_html, to_markdown
from emo_mlflow.report.findings import findings
from emo_mlflow.report.style import new_figure, save
from emo_mlflow.report.sweep import note, write_report

TEXTS = (
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "![x](https://evil.example/p.png)", "[x](javascript:alert(1))",
    "https://evil.example www.evil.example a@evil.example", "| a | b |", "`code`", "**b** _i_ ~s~", "# heading", "- item", "1. item", "---",
    "    indented", "a\n\n# b", "a\u2028b\r\nc\x85d", "\x1b[31mred\x07", "\u202egnp.exe", "&lt;b&gt;", "$\\frac$ $x$", "\ud800",
    "😀👩‍👩‍👧", "</td></table>",
    "\\", "\\|", "a\x00b", "]]>", "<!--", "{{x}}", "\u2066x\u2069",
)  # fmt: skip


class Seen(HTMLParser):
    """Tags, links and the text that a browser would show."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("text", TEXTS)
def test_generated_text_is_shown_and_is_no_markup(text):
    """Guards: scripts, images that call home, links, cells that break out, controls and overrides, in HTML and in Markdown as rendered."""
    markdown = pytest.importorskip("markdown_it")
    blocks = [Heading(text), Paragraph(text), Bullets([text]), Table(["column"], [[text]])]
    page, source = to_html(blocks, Path(), "en"), to_markdown(blocks)
    rendered = markdown.MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(source)
    for document in (page, rendered):
        document.encode()
        seen = Seen()
        seen.feed(document)
        allowed = {"html", "head", "meta", "title", "style", "body", "h2", "p", "ul", "li", "div", "table", "thead", "tbody", "tr", "th", "td"}
        assert seen.tags <= allowed, source
        assert seen.attributes <= {"charset", "name", "content", "lang", "class"}
        assert printable(seen.text) == seen.text
        shown = " ".join(one_line(text).split())
        assert " ".join(seen.text.split()).count(shown) >= 4, (shown, seen.text)
    for link in ("https://", "www.", "a@"):
        assert link not in source
    rows = [line for line in source.splitlines() if line.startswith("|")]
    assert len(rows) == 3 and all(len(re.findall(r"(?<!\\)\|", row)) == 2 for row in rows)


def test_the_sweeps_report_escapes_what_a_model_wrote(tmp_path):
    """Guards: a column of the examples, a setting, or the note on the run's page that is written without escaping."""
    evil = "<script>alert(1)</script> ![x](http://evil.example/a.png) | $\\frac$"
    sweep = synthetic_sweep("model-a", n_prompts=4, n_layers=2, n_random=1)
    sweep = replace(
        sweep,
        config=replace(sweep.config, model=evil, scorers=(evil,)),
        facts={**sweep.facts, "prompt_source": evil, "device": evil},
        prompts=sweep.prompts.assign(text=evil),
        streamed=on_disk(sweep.completions.assign(completion=evil), sweep.scores, sweep.effects),
    )
    write_report(sweep, tmp_path)
    for path in sorted(tmp_path.rglob("*.md")) + sorted(tmp_path.rglob("*.html")):
        content = path.read_text(encoding="utf-8")
        assert "<script" not in content and "evil.example" in content
        assert path.suffix == ".html" or "![x]" not in content
    assert "<script" not in note(sweep, findings(sweep))
    assert evil in json.dumps(json.loads((tmp_path / "examples.json").read_text()), ensure_ascii=False).replace("\\\\", "\\")


@pytest.mark.parametrize("name", ["$\\frac$", "a$b$c", "\x00", "\x1b[1m", "a\nb", "\u202ex", "é" * 300])
def test_a_figure_takes_names_literally(name, tmp_path):
    """Guards: a model called `a$b$c` set as a formula, and `$\\frac$` as a crash at the end of a sweep; powers of ten stay set."""
    figure = new_figure(4, 3)
    axes = figure.subplots()
    axes.plot([1, 2], [1, 1000], label=name)
    axes.set_yscale("log")
    axes.set_xticks([1, 2], [name, "b"])
    axes.set_title(name)
    axes.legend()
    save(figure, tmp_path / "x.png")
    assert not axes.title.get_parse_math() and axes.title.get_text() == printable(name)
    assert any(label.get_parse_math() and "$" in label.get_text() for label in axes.get_yticklabels())

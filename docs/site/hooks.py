"""What mkdocs does besides: formulas become MathML, which browsers draw by themselves; wide tables get the room of the table of contents."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.S)
WITHOUT_CONTENTS = ("heads.md", "parameters.md")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Hides the table of contents beside a table that needs its room."""
    if page.file.src_uri in WITHOUT_CONTENTS:
        page.meta["hide"] = ["toc"]
    return markdown


def on_page_content(content: str, **_: Any) -> str:
    """LaTeX to MathML; a formula that is wider than its page can be moved."""

    def drawn(found: re.Match[str]) -> str:
        latex = html.unescape(found[2])
        return convert(latex) if found[1] == "span" else f'<div class="formula">{convert(latex, display="block")}</div>'

    return FORMULA.sub(drawn, content)

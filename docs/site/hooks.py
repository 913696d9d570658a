"""What mkdocs does besides: formulas become MathML, which browsers draw by themselves, and tables come from the code."""

from __future__ import annotations

import html
import re
import sys
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

sys.path.insert(0, str(Path(__file__).parent))

from generated import parameter_table

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.S)
TABLE_HERE = re.compile(r"<!-- table of (\w+) -->")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts tables where a page asks for them."""
    return TABLE_HERE.sub(lambda found: parameter_table(found[1]), markdown)


def on_page_content(content: str, **_: Any) -> str:
    """LaTeX to MathML."""
    return FORMULA.sub(
        lambda found: convert(html.unescape(found[2]), display="inline" if found[1] == "span" else "block"), content
    )

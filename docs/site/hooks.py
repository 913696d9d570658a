"""What mkdocs does besides: formulas become MathML, which browsers draw by themselves, and tables come from the code."""

from __future__ import annotations

import html
import re
import sys
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

ROOT = Path(__file__).parents[2]
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.S)
TABLE_HERE = re.compile(r"<!-- table of (\w+) -->")


def parameter_table(command: str) -> str:
    """A command's parameters: their meaning, default, and what the profiles set instead, as Markdown.

    Args:
        command: sweep, heads, vectors or align.
    """
    sys.path.insert(0, str(ROOT))
    from emo_mlflow.settings.tables import ALIGN, HEADS, PARAMETERS, PROFILES, VECTORS

    parameters = {"sweep": PARAMETERS, "heads": HEADS, "vectors": VECTORS, "align": ALIGN}[command]
    profiles = PROFILES if command in ("sweep", "heads") else {}
    lines = ["| parameter | meaning | default |" + "".join(f" {name} |" for name in profiles), "|---" * (3 + len(profiles)) + "|"]
    for name, parameter in parameters.items():
        values = [parameter.default, *(profile.get(name, "") for profile in profiles.values())]
        cells = [f"`{value}`" if value else "" for value in values]
        lines.append(f"| `{name}` | {html.escape(parameter.help)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Puts tables where a page asks for them."""
    return TABLE_HERE.sub(lambda found: parameter_table(found[1]), markdown)


def on_page_content(content: str, **_: Any) -> str:
    """LaTeX to MathML."""
    return FORMULA.sub(
        lambda found: convert(html.unescape(found[2]), display="inline" if found[1] == "span" else "block"), content
    )

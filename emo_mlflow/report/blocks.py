"""A document as blocks, written as Markdown or as one HTML file; every text is escaped, for models can write markup."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape as html_escape
from html import unescape
from pathlib import Path

from emo_mlflow.common.names import one_line

BETWEEN_LISTS = "\n\n---\n\n"
# What Markdown and HTML could read as markup inside a line or a table's cell; underscores within words are none.
MARKUP = re.compile(r"[\\`*\[\]|$~]|(?<!\w)_|_(?!\w)")
ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
# What starts a heading, a list or a rule at the start of a line.
START = re.compile(r"^(?:([#+-]+)|(\d+)([.)]))(?=\s|$)|^([-=]{2,})$")
# What GitHub and MLflow make a link of, without being told: an entity is shown as its character and is none.
LINKS = re.compile(r"(?<=\w):(?=//)|(?<=www)\.|@", re.IGNORECASE)


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the title."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of plain text."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of plain texts."""

    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """A table of plain texts; rows as long as the columns."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A PNG under the document's folder, with what it shows."""

    path: str
    caption: str


Block = Heading | Paragraph | Bullets | Table | Picture


def to_markdown(blocks: Sequence[Block]) -> str:
    """GitHub-flavoured Markdown; pictures are linked."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def bullet_lists(*lists: Iterable[str]) -> str:
    """Lists as Markdown, with a line between them: Markdown would join them."""
    return BETWEEN_LISTS.join("\n".join(f"- {escape(text)}" for text in items) for items in lists)


def escape(text: str) -> str:
    """Text as it is, in one line of Markdown."""
    line = MARKUP.sub(lambda found: "\\" + found.group(), one_line(text).strip()).translate(ENTITIES)
    line = LINKS.sub(lambda found: f"&#{ord(found.group())};", line)
    return START.sub(lambda found: f"{found[2]}\\{found[3]}" if found[2] else f"\\{found[1] or found[4]}", line)


def plain(line: str) -> str:
    """The text of a line of Markdown that `escape` wrote, in a list or not."""
    return unescape(re.sub(r"\\(.)", r"\1", line.removeprefix("- ")))


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return "#" * block.level + " " + escape(block.text)
    if isinstance(block, Paragraph):
        return escape(block.text)
    if isinstance(block, Bullets):
        return "\n".join(f"- {escape(item)}" for item in block.items)
    if isinstance(block, Picture):
        # MLflow's viewer shows `[alternative text](path)` in its place, and the caption once is enough
        return f"![{escape(Path(block.path).stem)}]({block.path})\n\n*{escape(block.caption)}*"
    head = ["| " + " | ".join(map(escape, block.columns)) + " |", "|---" * len(block.columns) + "|"]
    return "\n".join([*head, *("| " + " | ".join(map(escape, row)) + " |" for row in block.rows)])


STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.55 system-ui, "Hiragino Sans", "Noto Sans CJK JP", "Yu Gothic", sans-serif; color: #1d1d1f;
background: #fff;
  max-width: 62rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; padding-bottom:
.2rem; } .scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; margin: .8rem 0; } th, td
{ border: 1px solid #d0d0d0; padding: .3rem .5rem; text-align: left; vertical-align: top; overflow-wrap: break-word;
min-width: 3.2rem; } th { background: #f3f3f3; } figure { margin: 1.2rem 0; } img { max-width: 100%; height: auto; }
figcaption { font-size: .88rem; color: #444; max-width: 46rem; }
@media (prefers-color-scheme: dark) { body { background: #16171a; color: #e4e4e7; } h2 { border-color: #3a3b40; } th, td { border-color: #3a3b40; }
th { background: #24262b; } figcaption { color: #b4b4ba; } img { filter: brightness(.86); border-radius: 4px; } }
"""


def to_html(blocks: Sequence[Block], folder: Path, language: str) -> str:
    """One HTML file without scripts or links: pictures are read from `folder` and put in."""
    title = next((block.text for block in blocks if isinstance(block, Heading)), "")
    meta = '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f'{meta}\n<title>{_shown(title)}</title>\n<style>{STYLE}</style>'
    body = "\n".join(_html(block, folder) for block in blocks)
    return f'<!doctype html>\n<html lang="{language}">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'


def _shown(text: str) -> str:
    return html_escape(one_line(text))


def _html(block: Block, folder: Path) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{_shown(block.text)}</h{block.level}>"
    if isinstance(block, Paragraph):
        return f"<p>{_shown(block.text)}</p>"
    if isinstance(block, Bullets):
        return "<ul>" + "".join(f"<li>{_shown(item)}</li>" for item in block.items) + "</ul>"
    if isinstance(block, Picture):
        data = base64.b64encode((folder / block.path).read_bytes()).decode("ascii")
        caption = _shown(block.caption)
        image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
        return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
    head = "".join(f"<th>{_shown(column)}</th>" for column in block.columns)
    rows = "".join("<tr>" + "".join(f"<td>{_shown(cell)}</td>" for cell in row) + "</tr>" for row in block.rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'

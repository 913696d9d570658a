"""Tables of the documentation that come from the code. `python docs/site/generated.py` writes those that stand in a page.

Tables of parameters are put into pages when the documentation is built; columns stand in the pages, which are read where nothing is built too.
"""

from __future__ import annotations

import html
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from emo_mlflow.alignment.schemas import OVERLAP  # noqa: E402
from emo_mlflow.settings.tables import ENTRY_POINTS  # noqa: E402
from emo_mlflow.sweep.schemas import TABLES  # noqa: E402

DECLARED = {**TABLES, "overlap": OVERLAP}

KINDS = {"large_string": "text", "int64": "whole number", "double": "number", "float": "number (32 bits)"}
COLUMNS_HERE = re.compile(r"(<!-- columns of (\w+) -->\n).*?(<!-- end -->)", re.S)


def parameter_table(command: str) -> str:
    """A command's parameters: their meaning, default, and what the profiles set instead, as Markdown."""
    entry = next(entry for entry in ENTRY_POINTS.values() if entry.command == command)
    names = "".join(f" {name} |" for name in entry.profiles)
    lines = [f"| parameter | meaning | default |{names}", "|---" * (3 + len(entry.profiles)) + "|"]
    for name, parameter in entry.parameters.items():
        values = [parameter.default, *(profile.get(name, "") for profile in entry.profiles.values())]
        cells = [f"`{value}`" if value else "" for value in values]
        lines.append(f"| `{name}` | {html.escape(parameter.help)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def column_table(name: str) -> str:
    """A table's columns: type, unit and meaning, as Markdown."""
    declared = DECLARED[name]
    lines = [f"`{name}.parquet`, a row per {declared.content.removeprefix('a ')}:", "", "| column | type | meaning | unit |", "|---|---|---|---|"]
    for field in (*declared.columns, *([declared.further] if declared.further else [])):
        notes = {key.decode(): value.decode() for key, value in field.metadata.items()}
        lines.append(f"| `{field.name}` | {KINDS[str(field.type)]} | {notes['description']} | {notes.get('unit', '')} |")
    return "\n".join(lines)


def with_columns(page: str) -> str:
    """A page with its tables of columns as they are declared."""
    return COLUMNS_HERE.sub(lambda found: f"{found[1]}{column_table(found[2])}\n{found[3]}", page)


if __name__ == "__main__":
    for path in (ROOT / "docs").glob("*.md"):
        path.write_text(with_columns(path.read_text(encoding="utf-8")), encoding="utf-8")

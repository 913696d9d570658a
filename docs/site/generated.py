"""What comes from the code and stands in a page: `python docs/site/generated.py` writes it there, and a test holds the pages to it.

A page is read where nothing is built, such as on a code host: so tables, examples and signatures stand in it as plain Markdown, between two comments
(`<!-- parameters of sweep -->` and `<!-- end -->`).
"""

from __future__ import annotations

import html
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from emo_mlflow.alignment.schemas import OVERLAP  # noqa: E402
from emo_mlflow.settings.tables import ENTRY_POINTS  # noqa: E402
from emo_mlflow.sweeping.schemas import TABLES  # noqa: E402

DECLARED = {**TABLES, "overlap": OVERLAP}

KINDS = {"large_string": "text", "int64": "whole number", "double": "number", "float": "number (32 bits)"}
MADE_HERE = re.compile(r"(<!-- (parameters|columns|example|signature) of ([\w./: ]+) -->\n).*?(<!-- end -->)", re.S)
SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Yields):\n((?:(?:[ ]{4}.*)?(?:\n|$))+)", re.M)
ENTRY = re.compile(r"^([\w.]+(?:, [\w.]+)*): ", re.M)
TITLES = {"Args": "Arguments", "Yields": "Gives, one after another"}
LINE = 100


def parameter_table(command: str) -> str:
    """A command's parameters: their meaning, default, and what the profiles set instead. Each has an address, `#name`."""
    entry = next(entry for entry in ENTRY_POINTS.values() if entry.command == command)
    names = "".join(f" {name} |" for name in entry.profiles)
    lines = [f"| parameter | meaning | default |{names}", "|---" * (3 + len(entry.profiles)) + "|"]
    for name, parameter in entry.parameters.items():
        values = [parameter.default, *(profile.get(name, "") for profile in entry.profiles.values())]
        cells = [f"`{value}`" if value else "" for value in values]
        lines.append(
            f'| <a id="{name}" href="#{name}">`{name}`</a> | {html.escape(parameter.help, quote=False)} | '
            + " | ".join(cells)
            + " |"
        )
    return "\n".join(lines)


def column_table(name: str) -> str:
    """A table's columns: type, unit and meaning."""
    declared = DECLARED[name]
    lines = [
        f"`{name}.parquet`, a row per {declared.content.removeprefix('a ')}:",
        "",
        "| column | type | meaning | unit |",
        "|---|---|---|---|",
    ]
    for field in (*declared.columns, *([declared.further] if declared.further else [])):
        notes = {key.decode(): value.decode() for key, value in field.metadata.items()}
        lines.append(
            f"| `{field.name}` | {KINDS[str(field.type)]} | {notes['description']} | {notes.get('unit', '')} |"
        )
    return "\n".join(lines)


def example(source: str) -> str:
    """A part of a script in docs/, `examples/x.py: part`, which stands there between `# part` and the next such line of a single word."""
    path, part = source.split(": ")
    code = (ROOT / "docs" / path).read_text(encoding="utf-8")
    found = re.search(rf"^# \[{part}\]\n(.*?)\n*(?=^# \[|\Z)", code, re.M | re.S)
    assert found, source
    return f"```python\n{found[1]}\n```"


def signature(path: str) -> str:
    """A function or class by its full name: how it is called, what its docstring says, and its public members."""
    module, name = path.rsplit(".", 1)
    thing = getattr(import_module(module), name)
    public = f"emo_mlflow.{name}" if name in import_module("emo_mlflow").__all__ else path
    called = f"{public}(message)" if inspect.isclass(thing) and issubclass(thing, Exception) else _call(public, thing)
    parts = [f"### {name}", f"```python\n{called}\n```", _markdown(thing.__doc__ or "")]
    parts += (
        [f"`{shown}`: {_markdown(member.__doc__ or '')}" for shown, member in _members(thing)]
        if inspect.isclass(thing)
        else []
    )
    return "\n\n".join(parts)


def _members(cls: type) -> Iterator[tuple[str, Any]]:
    for name, member in vars(cls).items():
        if (
            not (name.startswith("_") and name != "__call__")
            and member.__doc__
            and isinstance(member, property | cached_property)
        ):
            yield f".{name}", member
        elif not (name.startswith("_") and name != "__call__") and inspect.isfunction(member) and member.__doc__:
            yield _call("" if name == "__call__" else f".{name}", member), member


def _call(name: str, thing: Callable[..., Any]) -> str:
    found = inspect.signature(thing)
    arguments = [str(one) for one in _shown(found.parameters)]
    returned = (
        ""
        if inspect.isclass(thing) or found.return_annotation is inspect.Signature.empty
        else f" -> {found.return_annotation}"
    )
    line = f"{name}({', '.join(arguments)}){returned}"
    return line if len(line) <= LINE else "\n".join([f"{name}(", *(f"    {one}," for one in arguments), f"){returned}"])


def _shown(parameters: Mapping[str, inspect.Parameter]) -> Iterator[str]:
    """As they are written in the source; annotations are texts there."""
    starred = False
    for name, one in parameters.items():
        if name == "self":
            continue
        if one.kind is one.KEYWORD_ONLY and not starred:
            yield "*"
        starred = starred or one.kind in (one.KEYWORD_ONLY, one.VAR_POSITIONAL)
        stars = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
        default = "" if one.default is one.empty else f" = {_value(one.default)}"
        yield f"{stars}{name}" + ("" if one.annotation is one.empty else f": {one.annotation}") + default


def _value(default: object) -> str:
    if isinstance(default, str):
        return json.dumps(default)
    return default.__name__ if inspect.isroutine(default) else repr(default)


def _markdown(docstring: str) -> str:
    """A docstring's sections as lists."""

    def section(found: re.Match[str]) -> str:
        return f"{TITLES.get(found[1], found[1])}:\n\n{_entries(found[1], inspect.cleandoc(found[2]))}\n\n"

    return SECTION.sub(section, inspect.cleandoc(docstring)).strip()


def _entries(section: str, text: str) -> str:
    if section in ("Returns", "Yields"):
        return text
    joined = re.sub(r"\n\s+", " ", text)
    return ENTRY.sub(r"- `\1`: ", joined)


MAKERS: dict[str, Callable[[str], str]] = {
    "parameters": parameter_table,
    "columns": column_table,
    "example": example,
    "signature": signature,
}


def renewed(page: str) -> str:
    """A page with what comes from the code as the code has it."""
    return MADE_HERE.sub(lambda found: f"{found[1]}\n{MAKERS[found[2]](found[3])}\n\n{found[4]}", page)


if __name__ == "__main__":
    for path in (ROOT / "docs").glob("*.md"):
        path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")

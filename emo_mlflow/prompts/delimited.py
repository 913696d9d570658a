"""Text files of rows: their encoding, what stands between their fields, and their rows."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

from emo_mlflow.errors import UserError

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # what files begin with
_BETWEEN = ",;\t|"


def read_text(path: Path, encoding: str = "") -> str:
    """A file's text, by the encoding that is given, or the one that its first bytes say, or as UTF-8.

    Raises:
        UserError: if it is in another one, with the option that would read it; or if there is no such encoding.
    """
    content = path.read_bytes()
    marked = next((name for mark, name in _MARKS if content.startswith(mark)), None)
    try:
        return content.decode(encoding or marked or "utf-8").removeprefix("\ufeff")
    except LookupError:
        raise UserError(f"encoding={encoding!r} is not known: such as utf-8, utf-16, latin-1, cp1252, shift_jis, gb18030") from None
    except UnicodeError as error:
        if encoding:
            raise UserError(f"{path.name} is not in encoding={encoding} ({error}): leave it out, or name another") from None
        raise UserError(_advice(path.name, content, getattr(error, "start", 0))) from None


def _advice(name: str, content: bytes, start: int) -> str:
    """Which encodings would read a file that is not UTF-8, with what they make of the first odd character."""
    half = len(content) // 2
    if content[1::2].count(0) > half // 2 or content[::2].count(0) > half // 2:
        little = content[1::2].count(0) > content[::2].count(0)
        return f"{name} is not UTF-8 but looks like UTF-16 without its mark: say encoding={'utf-16-le' if little else 'utf-16-be'}"
    seen = []
    for encoding in ("latin-1", "cp1252", "shift_jis", "gb18030", "cp1251"):
        try:
            before = len(content[:start].decode(encoding))
            around = content.decode(encoding)[max(0, before - 12) :][:24]
        except UnicodeError:
            continue
        seen.append(f"encoding={encoding} ({' '.join(around.split())!r})")
    return f"{name} is not UTF-8 (byte {start}): say the one that reads it right, {', '.join(seen)}, or save it as UTF-8"


def delimited_rows(text: str, name: str) -> Iterator[tuple[str, dict[str, object]]]:
    """The rows of a CSV file, by commas, semicolons, tabs or bars, as its header has them; of one without a header, text and label.

    Raises:
        UserError: naming the line with too few or too many fields, or a quote that does not end.
    """
    first = text.lstrip("\n").partition("\n")[0]
    between = max(_BETWEEN, key=first.count)
    # Not pandas, which takes the first field for an index when a text with a comma has no quotes.
    published = first.startswith("conv_id,")  # EmpatheticDialogues, whose quotes mean nothing and whose commas are written _comma_
    unquoted = published or (between != "," and '"' not in text)
    reader = csv.reader(StringIO(text), delimiter=between, strict=not unquoted, quoting=csv.QUOTE_NONE if unquoted else csv.QUOTE_MINIMAL)
    header: list[str] = []
    start = 1
    try:
        for fields in reader:
            place, start = f"line {start}", reader.line_num + 1
            if not fields:
                continue
            if not header:
                header = _header(fields, name)
                if header != [field.strip() for field in fields]:  # the first line is a row too
                    yield place, dict(zip(header, fields, strict=True))
            elif len(fields) != len(header) and not (published and len(fields) >= 6):
                raise UserError(
                    f"{name}, {place} has {len(fields)} fields and the header {len(header)}: put a text with "
                    f"{'commas' if between == ',' else repr(between)} in quotes"
                )
            else:
                yield place, dict(zip(header, fields, strict=False))
    except csv.Error as error:
        raise UserError(f"{name}, line {start} cannot be read as csv: {error}") from None


def _header(fields: list[str], name: str) -> list[str]:
    """The columns' names; of GoEmotions' files, which have none, and of lines `text;emotion`, what they are known to be."""
    found = [field.strip() for field in fields]
    if len(fields) == 3 and re.fullmatch(r"\d+(,\d+)*", found[1]) and re.fullmatch(r"\w{6,9}", found[2], re.ASCII):
        return ["text", "label", "comment_id"]
    if len(fields) == 2 and name.lower().endswith(".txt"):
        return ["text", "emotion"] if {"text", "emotion"} != set(found) else found
    if len(set(found)) < len(found):
        raise UserError(f"{name} names a column twice: {', '.join(found)}")
    return found

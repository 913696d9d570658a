"""The font that a language's figures are drawn in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from matplotlib import font_manager, rc_context

from emo_mlflow.errors import UserError
from emo_mlflow.report.style import STYLE

# Fonts with Japanese glyphs that systems come with; for those that come with none, matplotlib-fontja has one.
JAPANESE = (
    "Noto Sans CJK JP",
    "Hiragino Sans",
    "Yu Gothic",
    "Meiryo",
    "IPAexGothic",
    "IPAGothic",
    "TakaoGothic",
    "MS Gothic",
)
PACKAGE, FILE = "matplotlib_fontja", "fonts/ipaexg.ttf"


def families(language: str) -> list[str]:
    """Font families for a language, those behind the first for the glyphs that it lacks.

    Raises:
        UserError: if the language needs glyphs that no installed font has.
    """
    extra = _japanese()
    if language == "ja" and extra is None:
        raise UserError(
            "language=ja needs a font with Japanese glyphs: pip install matplotlib-fontja, or install Noto Sans CJK"
        )
    return ["DejaVu Sans", *([extra] if extra else [])]


def _japanese() -> str | None:
    # Found without importing it: its import changes the fonts of every figure in the process.
    spec = find_spec(PACKAGE)
    if spec and spec.origin and (path := Path(spec.origin).parent / FILE).is_file():
        known = {Path(entry.fname) for entry in font_manager.fontManager.ttflist}
        if path not in known:
            font_manager.fontManager.addfont(path)
    names = {entry.name for entry in font_manager.fontManager.ttflist}
    return next((name for name in JAPANESE if name in names), None)


@contextmanager
def styled(language: str) -> Iterator[None]:
    """Draws figures in the project's style, in the language's font."""
    settings: dict[Any, Any] = {**STYLE, "font.family": families(language)}
    with rc_context(settings):
        yield

"""Figures as files: for the screen and for a paper, equal bytes for equal figures."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from PIL import Image

import emo_mlflow.report
from emo_mlflow.report import style
from emo_mlflow.report.fonts import styled
from emo_mlflow.report.style import new_figure, save


@pytest.fixture
def written(for_papers, monkeypatch, tmp_path):
    """Writes a figure into a folder of this name."""
    monkeypatch.setattr(style, "FOR_PAPERS", for_papers)

    def write(name: str) -> dict[str, bytes]:
        figure = new_figure(3, 2)
        figure.subplots().plot([0, 1], [1, 0], label="a$b$")
        save(figure, tmp_path / name / "one.png")
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}

    return write


def test_every_figure_is_there_for_the_screen_and_for_a_paper(written, tmp_path: Path):
    files = written("first")
    assert set(files) == {"one.png", "one.svg", "one.pdf"}
    with Image.open(tmp_path / "first" / "one.png") as image:
        assert image.size == (900, 600)
    assert files["one.pdf"].startswith(b"%PDF") and b"/FontFile2" in files["one.pdf"], "TrueType, as journals take it"
    assert files["one.svg"].startswith(b"<?xml")


def test_equal_figures_are_equal_bytes(written):
    """Guards: a date or a random name in a file, which makes two runs of one sweep differ."""
    first = written("first")
    time.sleep(1.1)  # past the second that a date would have
    assert written("second") == first


def test_every_report_draws_in_the_one_style():
    """Guards: frames, sizes and titles that differ from report to report, because axes are made outside the style."""
    with styled("en"):
        figure = new_figure(3, 2)
        axes = figure.subplots()
        axes.set_title("title", loc=None)
        (line,) = axes.plot([0], [0])
        sizes = {text.get_fontsize() for text in figure.legend([line], ["line"]).get_texts()}
    assert not axes.spines["top"].get_visible() and axes.get_title(loc="left") == "title" and sizes == {8}
    for file in Path(next(iter(emo_mlflow.report.__path__))).glob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert file.name == "style.py" or " save(" not in text or "styled(" in text, file.name

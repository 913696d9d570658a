"""Figures as files: for the screen and for a paper, equal bytes for equal figures."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from PIL import Image

from emo_mlflow.report import style
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

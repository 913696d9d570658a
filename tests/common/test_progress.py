"""Bars on a terminal: a phase's moves with every part that is told of, and nothing is shown or kept where nobody looks."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest

from emo_mlflow.common import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Cell(io.StringIO):
    """Where a notebook's error stream goes, which is no terminal."""


@pytest.fixture
def terminal(monkeypatch):
    return shown_in(Terminal(), {}, monkeypatch)


def shown_in(found: io.StringIO, modules: dict[str, object], monkeypatch) -> io.StringIO:
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=found, modules=modules))  # pytest puts its own in place of the real one
    real = progress.tqdm
    monkeypatch.setattr(progress, "tqdm", lambda **options: real(**(options | {"delay": 0, "mininterval": 0, "miniters": 1})))
    return found


def test_a_bar_moves_within_a_pack_and_ends_where_the_work_says(terminal):
    with progress.bars():
        progress.reached(progress.WRITING, 0, 8)
        for _ in range(4):
            progress.advance(progress.WRITING, 1.0)  # four steps of a pack of four rows and as many steps
        assert "4/8" in terminal.getvalue()
        progress.reached(progress.WRITING, 2, 8)  # the pack did not fit the memory
        assert "2/8" in terminal.getvalue().rsplit("\r", 1)[-1]
        progress.advance(progress.SCORING, 5, 10)
        assert "Scoring texts" in terminal.getvalue() and "5/10" in terminal.getvalue()


@pytest.mark.parametrize("notebook", [True, False])
def test_a_notebook_shows_bars_too(notebook, monkeypatch):
    """Guards: minutes of an empty cell; and a bar in a log file."""
    found = shown_in(Cell(), {"ipykernel.iostream": SimpleNamespace(OutStream=Cell)} if notebook else {}, monkeypatch)
    with progress.bars():
        progress.advance(progress.READING, 1, 2)
    assert ("Reading texts" in found.getvalue()) is notebook


def test_nothing_is_shown_without_bars_or_a_phase_that_is_open(terminal):
    progress.advance(progress.READING, 1, 2)
    with progress.bars():
        progress.advance(progress.WRITING, 0.5)
    assert not terminal.getvalue()

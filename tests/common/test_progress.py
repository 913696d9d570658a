"""Bars on a terminal: a phase's moves with every part that is told of, and nothing is shown or kept where nobody looks."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from tqdm import tqdm

from emo_mlflow.common import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Cell(io.StringIO):
    """Where a notebook's error stream goes, which is no terminal."""


class Prompt(tqdm):
    """A bar that is drawn at each step."""

    def __init__(self, **options: object) -> None:
        super().__init__(**(options | {"delay": 0, "mininterval": 0, "miniters": 1}))


@pytest.fixture
def terminal(monkeypatch):
    return shown_in(Terminal(), {}, monkeypatch)


def shown_in(found: io.StringIO, modules: dict[str, object], monkeypatch) -> io.StringIO:
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=found, modules=modules))  # pytest puts its own in place of the real one
    monkeypatch.setattr(progress, "tqdm", Prompt)
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


def test_a_notebook_shows_bars_too(monkeypatch):
    """Guards: minutes of an empty cell."""
    found = shown_in(Cell(), {"ipykernel.iostream": SimpleNamespace(OutStream=Cell)}, monkeypatch)
    with progress.bars():
        progress.advance(progress.READING, 1, 2)
    assert "Reading texts" in found.getvalue() and "\r" in found.getvalue()


def test_a_log_gets_a_line_every_half_minute(monkeypatch):
    """Guards: a job's log that is silent for minutes, or has a line for each of a thousand packs; a time left that counts another session's texts."""
    found = shown_in(io.StringIO(), {}, monkeypatch)
    clock = iter([0, 0, 1, 20, 30, 60, 90, 90, 129])
    monkeypatch.setattr(progress, "monotonic", lambda: next(clock))
    with progress.bars():
        for done in (40, 41, 44, 50, 60):  # opened at 0, told of at 0, 1, 20, 30 and 60
            progress.reached(progress.WRITING, done, 100)
        for _ in range(2):
            progress.advance(progress.SCORING, 3, 9)  # opened and told of at 90, told of at 129
    assert found.getvalue().splitlines() == [
        "Writing texts: 40 of 100",
        "Writing texts: 50 of 100, 02:30 left",
        "Writing texts: 60 of 100, 02:00 left",
        "Scoring texts: 3 of 9",
        "Scoring texts: 6 of 9, 00:39 left",
    ]


def test_nothing_is_shown_without_bars_or_a_phase_that_is_open(terminal):
    progress.advance(progress.READING, 1, 2)
    with progress.bars():
        progress.advance(progress.WRITING, 0.5)
    assert not terminal.getvalue()

"""How far a phase of the work is: told by what does it, shown by the command that runs it.

What works calls `advance` or `reached`; nobody hears it unless a command has opened `bars`, so what takes minutes needs no further argument.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from time import monotonic

from tqdm import tqdm

READING, WRITING, SCORING, COMPARING = "Reading texts", "Writing texts", "Scoring texts", "Comparing"
SECONDS_A_LINE = 30.0


class _Bars:
    """A bar on the error stream for the phase that was told of last; in a log, which can redraw nothing, a line every half minute."""

    def __init__(self) -> None:
        self._lock = Lock()  # rows are decoded in threads
        self._in_log = not (sys.stderr.isatty() or _in_notebook())
        self._last_line = -SECONDS_A_LINE
        self._phase = ""
        self._opened = self._first = self._done = 0.0
        self._bar: tqdm[None] | None = None

    def advance(self, phase: str, amount: float, total: int | None) -> None:
        with self._lock:
            if phase == self._phase:
                self._show(self._done + amount)
            elif total is not None:
                self._open(phase, int(amount), total)  # nobody knows how long the first part took
                self._show(amount)

    def reached(self, phase: str, done: int, total: int) -> None:
        with self._lock:
            if self._bar is None or phase != self._phase:
                self._open(phase, done, total)
            assert self._bar is not None
            self._bar.total = total
            self._show(done)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar, self._phase = None, ""

    def _open(self, phase: str, first: int, total: int) -> None:
        self.close()
        self._phase, self._opened = phase, monotonic()
        self._first = self._done = float(first)
        shown = {"desc": phase, "unit": "table" if phase == COMPARING else "text", "disable": self._in_log, "file": sys.stderr}
        self._bar = tqdm(total=total, initial=first, mininterval=0.5, delay=0.5, leave=False, **shown)

    def _show(self, done: float) -> None:
        assert self._bar is not None
        self._done = min(done, float(self._bar.total))
        if self._in_log and done < self._bar.total:
            self._say(self._bar.total)
        if (more := int(self._done) - self._bar.n) < 0:  # a pack that did not fit the memory is begun again
            self._bar.n += more
            self._bar.refresh()
        else:
            self._bar.update(more)
        if done >= self._bar.total:
            self.close()

    def _say(self, total: float) -> None:
        now = monotonic()
        if now - self._last_line >= SECONDS_A_LINE:
            made = self._done - self._first
            left = f", {tqdm.format_interval((total - self._done) / made * (now - self._opened))} left" if made else ""
            print(f"{self._phase}: {self._done:.0f} of {total}{left}", file=sys.stderr, flush=True)
            self._last_line = now


def _in_notebook() -> bool:
    return "ipykernel.iostream" in sys.modules and isinstance(sys.stderr, sys.modules["ipykernel.iostream"].OutStream)


_shown: list[_Bars] = []


def advance(phase: str, amount: float, total: int | None = None) -> None:
    """Says that so much more of a phase is done.

    Args:
        amount: in texts or tables; may be a part of one.
        total: of the phase; None where only what opened it knows.
    """
    if _shown:
        _shown[-1].advance(phase, amount, total)


def reached(phase: str, done: int, total: int) -> None:
    """Says how much of a phase is done, whatever `advance` has said of it."""
    if _shown:
        _shown[-1].reached(phase, done, total)


@contextmanager
def bars() -> Iterator[None]:
    """Shows a bar with the time that is left while this is open."""
    found = _Bars()
    _shown.append(found)
    try:
        yield
    finally:
        _shown.remove(found)
        found.close()

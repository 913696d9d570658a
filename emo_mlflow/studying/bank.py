"""The texts of a study and their scores: written when a test first asks for them, kept, and never written twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from emo_mlflow.scoring.broken import broken
from emo_mlflow.scoring.protocol import Scorers
from emo_mlflow.statistics.moments import Floats
from emo_mlflow.studying.protocol import Arm
from emo_mlflow.types import Cell, Completion, Condition

Write = Callable[[Sequence[Cell]], Iterator[Sequence[Completion]]]
Progress = Callable[[int, int], None]


class TextBank:
    """The bank that `procedure.run_tests` asks.

    Args:
        conditions: of each arm, one per depth.
        labels: each emotion's own metric.
        prompts: ids, in the order in which comparisons use them.
        write: cells to completions, in packs, as they come.
        on_progress: called with the texts that are there and those that were asked for so far.
    """

    def __init__(
        self,
        conditions: Mapping[Arm, Sequence[Condition]],
        labels: Mapping[str, str],
        prompts: Sequence[str],
        samples: int,
        scorers: Scorers,
        write: Write,
        done: Iterable[Completion] = (),
        on_progress: Progress = lambda done, total: None,
    ) -> None:
        self.conditions = conditions
        self.labels = labels
        self.prompts = list(prompts)
        self.samples = samples
        self.scorers = scorers
        self._write = write
        self._on_progress = on_progress
        self._completions: dict[Cell, Completion] = {item.cell: item for item in done}
        self._scores: dict[str, Floats] = {}
        self._filled: dict[Arm, int] = {}

    def fill(self, asked: Mapping[Arm, int]) -> None:
        """Makes sure that each arm has continued so many of the first prompts."""
        for arm, count in asked.items():
            self._filled[arm] = max(count, self._filled.get(arm, 0))
        cells = [cell for arm, count in asked.items() for cell in self.cells(arm, count)]
        missing = [cell for cell in dict.fromkeys(cells) if cell not in self._completions]
        self._on_progress(len(self._completions), len(self._completions) + len(missing))
        total = len(self._completions) + len(missing)
        if missing:
            for pack in self._write(missing):
                self._completions |= {item.cell: item for item in pack}
                self._on_progress(len(self._completions), total)
        self._score([self._completions[cell] for cell in cells])

    def cells(self, arm: Arm, count: int) -> Iterator[Cell]:
        """The cells of an arm on the first prompts, depth after depth."""
        for condition in self.conditions[arm]:
            for prompt in self.prompts[:count]:
                for sample in range(self.samples):
                    yield Cell(condition.condition_id, prompt, sample)

    def scores(self, arm: Arm, emotion: str) -> Floats:
        """An emotion's own label on the prompts that an arm has continued, [depths, n], samples averaged; NaN where all failed."""
        column = self.scorers.metrics.index(self.labels[emotion])
        return self._by_prompt(arm, lambda item: float(self._scores[item.completion][column]))

    def all_scores(self, arm: Arm) -> Floats:
        """Every metric of an arm at its first depth, [n, metrics]."""
        columns = range(len(self.scorers.metrics))
        return np.stack([self._by_prompt(arm, lambda item, c=c: float(self._scores[item.completion][c]))[0] for c in columns], axis=1)  # type: ignore[misc]

    def broken(self, arm: Arm) -> Floats:
        """How probable it is that each text of an arm is broken, [texts]: 1 of a text that failed, NaN where nothing measured it."""
        items = self.texts(arm)
        found = broken([item.completion for item in items], [item.nll for item in items], [item.nll_sd for item in items])
        return np.where([item.failure is not None for item in items], 1.0, found)

    def texts(self, arm: Arm) -> list[Completion]:
        """The completions of an arm, depth after depth, by prompt."""
        return [self._completions[cell] for cell in self.cells(arm, self._filled[arm])]

    @property
    def arms(self) -> dict[Arm, int]:
        """The arms that were asked for, and how many prompts each has continued."""
        return dict(self._filled)

    @property
    def completions(self) -> list[Completion]:
        """All that the tests asked for."""
        return [item for arm in self._filled for item in self.texts(arm)]

    def _by_prompt(self, arm: Arm, value: Callable[[Completion], float]) -> Floats:
        count = self._filled[arm]
        items = [np.nan if item.failure is not None else value(item) for item in self.texts(arm)]
        table = np.array(items, float).reshape(len(self.conditions[arm]), count, self.samples)
        there = ~np.isnan(table)
        sums = np.where(there, table, 0.0).sum(axis=2)
        return np.where(there.any(axis=2), sums / np.maximum(there.sum(axis=2), 1), np.nan)

    def _score(self, items: Sequence[Completion]) -> None:
        """Scores what was not scored, in an order of its own: a scorer that quantises by batch gives a text other last bits in another batch."""
        new = sorted({item.completion for item in items if item.failure is None} - set(self._scores))
        if new:
            self._scores |= dict(zip(new, self.scorers.score(new).astype(float), strict=True))

"""A sweep's scores as arrays: every condition and every prompt, beside the baseline of the same prompt."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from emo_mlflow.comparison.rows import records
from emo_mlflow.comparison.sources import Source
from emo_mlflow.statistics.moments import Floats
from emo_mlflow.sweeping.results import controlled

# What sets one condition of an emotion apart from the others, and names a test together with model and metric.
SETTING = ["emotion", "layer", "head", "alpha", "scope", "patch_window"]


@dataclass(frozen=True, eq=False)
class Responses:
    """Scores per condition and prompt, samples averaged.

    Attributes:
        source: the sweep.
        conditions: the rows of its conditions but the baseline, indexed 0.. in the order of the arrays' first axis.
        prompt_ids: in the order of the second axis.
        metrics: in the order of the third axis; the scorers' and FLUENCY's.
        before, after: float32 [conditions, prompts, metrics]; NaN where a cell has no value.
    """

    source: Source
    conditions: pd.DataFrame
    prompt_ids: tuple[str, ...]
    metrics: tuple[str, ...]
    before: Floats
    after: Floats

    @cached_property
    def change(self) -> Floats:
        """after - before."""
        return self.after - self.before

    @cached_property
    def draws(self) -> dict[int, np.ndarray]:
        """By position of a condition of an emotion: the positions of its random controls."""
        settings = [(*controlled(row), row["scope"]) for row in records(self.conditions)]
        controls: dict[tuple[object, ...], list[int]] = {}
        for position in self.rows("random"):
            controls.setdefault(settings[position], []).append(position)
        return {row: np.array(controls.get(settings[row], []), dtype=int) for row in self.rows("emotion")}

    def rows(self, kind: str) -> np.ndarray:
        """Positions of the conditions of a kind."""
        return np.flatnonzero(self.conditions["kind"].to_numpy() == kind)

    def position(self, condition_id: str) -> int:
        """Position of a condition."""
        return int(np.flatnonzero(self.conditions["condition_id"].to_numpy() == condition_id)[0])

    def metric(self, name: str) -> int:
        """Position of a metric."""
        return self.metrics.index(name)


def responses(source: Source) -> Responses:
    """A sweep's scores, beside the conditions that they are of."""
    cells = source.cells
    conditions = source.conditions[source.conditions["kind"] != "baseline"].reset_index(drop=True)
    return Responses(source, conditions, cells.prompt_ids, cells.metrics, cells.before, cells.after)


def keys_of_tests(data: Responses, rows: np.ndarray) -> pd.DataFrame:
    """model, run_id, condition_id, SETTING, depth and metric for each of the given conditions and every metric."""
    conditions = data.conditions.iloc[rows]
    keys = conditions[["condition_id", *SETTING]].loc[conditions.index.repeat(len(data.metrics))].reset_index(drop=True)
    keys.insert(0, "model", data.source.label)
    keys.insert(1, "run_id", data.source.run_id)
    keys.insert(5, "depth", data.source.depth(keys["layer"]))
    return keys.assign(metric=np.tile(np.array(data.metrics, object), len(rows)))


def prompts_by_tests(values: Floats) -> Floats:
    """[conditions, prompts, metrics] as [prompts, conditions x metrics], tests in the order of `keys_of_tests`."""
    return values.transpose(1, 0, 2).reshape(values.shape[1], -1)

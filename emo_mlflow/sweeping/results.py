"""What a finished sweep is: the tables that tracking logs, reports draw, and comparisons read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from emo_mlflow.common.columns import VALUES, dataset, rows_of
from emo_mlflow.settings.sweep import SweepConfig
from emo_mlflow.sweeping.schemas import CONDITIONS
from emo_mlflow.sweeping.swept import Swept
from emo_mlflow.types import Condition

# A condition's controls are random directions at its own place and strength, or heads drawn from anywhere in the layers.
CONTROLLED = ("emotion", "layer", "alpha", "patch_window")


def controlled(condition: Mapping[Any, Any]) -> tuple[Any, ...]:
    """What a condition of an emotion shares with its random controls, and with those of no other condition."""
    is_head = not pd.isna(condition["head"])
    shared = {name: None if pd.isna(condition[name]) else condition[name] for name in CONTROLLED}
    return tuple(None if is_head and name == "layer" else value for name, value in shared.items())


def condition_of(row: Mapping[Any, Any]) -> Condition:
    """The condition that a row of CONDITIONS is."""
    defines = (item for item in CONDITIONS.columns if item.name in Condition.__dataclass_fields__ and not pd.isna(row[item.name]))
    return Condition(**{item.name: VALUES[item.type](row[item.name]) for item in defines})


@dataclass(frozen=True, eq=False)
class SweepResult:
    """The tables of one sweep, each as the artifact of its name holds it; `schemas` says what their columns are.

    Attributes:
        facts: what was found rather than chosen: versions, device, n_layers, d_model, model and scorer fingerprints,
            the reference emotion, how the prompts were split, the hash of the texts that directions were fitted on.
        prompts: those that were continued.
        fit_prompts: those that directions were fitted on.
        swept: the directions that were injected, or the heads that were replaced.
        streamed: the folder of the tables that may not fit the memory, completions.parquet, scores.parquet and effects.parquet.
        metrics: numbers about the run itself: cells per second, tokens per second, peak memory, failed cells, ...
    """

    config: SweepConfig
    facts: Mapping[str, Any]
    prompts: pd.DataFrame
    fit_prompts: pd.DataFrame
    swept: Swept
    conditions: pd.DataFrame
    streamed: Path
    metrics: Mapping[str, float]

    def scan(self, name: str) -> ds.Dataset:
        """`completions`, `scores` or `effects` on disk, of which only what is asked for is read."""
        return dataset(self.streamed / f"{name}.parquet")

    @property
    def completions(self) -> pd.DataFrame:
        """A row per cell, all in memory."""
        return self.scan("completions").to_table().to_pandas()

    @property
    def scores(self) -> pd.DataFrame:
        """A row per cell that did not fail, all in memory."""
        return self.scan("scores").to_table().to_pandas()

    @property
    def effects(self) -> pd.DataFrame:
        """A row per condition and metric, all in memory."""
        return self.scan("effects").to_table().to_pandas()

    def effects_of(self, kinds: Collection[str], emotion: str | None = None, metrics: Collection[str] | None = None) -> pd.DataFrame:
        """Effects of the conditions of some kinds, with the columns of these conditions, in the sweep's order.

        Args:
            emotion: only of its conditions.
            metrics: only these.
        """
        own = self.conditions["kind"].isin(kinds)
        if emotion is not None:
            own &= self.conditions["emotion"] == emotion
        asked = self.conditions[own]
        wanted = pc.field("condition_id").isin(pa.array(asked["condition_id"], pa.large_string()))
        if metrics is not None:
            wanted &= pc.field("metric").isin(list(metrics))
        return rows_of(self.scan("effects"), wanted).merge(asked, on="condition_id", validate="many_to_one")

"""What a finished sweep is: the tables that tracking logs, reports draw, and comparisons read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from emo_mlflow.types import Direction, SweepConfig

KEYS = ["condition_id", "prompt_id", "sample"]


@dataclass(frozen=True, eq=False)
class SweepResult:
    """The tables of one sweep, each as the artifact of its name holds it.

    Attributes:
        config: the settings as resolved: layers and emotions are listed, never None.
        facts: what was found rather than chosen: versions, device, n_layers, d_model, model and scorer fingerprints,
            the reference emotion, how the prompts were split, the hash of the texts that directions were fitted on.
        prompts: prompt_id, emotion, text of the test prompts.
        fit_prompts: the same of the prompts that directions were fitted on.
        directions: by emotion; empty arrays never occur.
        conditions: condition_id, kind, emotion, layer, alpha, draw, scope, patch_window, n_patched (the sum over the
            condition's cells); layer, alpha, draw and patch_window are nullable.
        completions: KEYS, completion, n_tokens, nll, distinct_2, failure (None where the cell succeeded).
        scores: KEYS and one float32 column per metric, named `scorer.label`; cells that failed have no row.
        effects: condition_id, metric, n, mean_baseline, mean_patched, mean_diff, d_z; metrics are the score columns
            and `fluency.nll`, `fluency.distinct_2`; the baseline has no row.
        metrics: numbers about the run itself: cells per second, tokens per second, peak memory, failed cells, ...
    """

    config: SweepConfig
    facts: Mapping[str, Any]
    prompts: pd.DataFrame
    fit_prompts: pd.DataFrame
    directions: Mapping[str, Direction]
    conditions: pd.DataFrame
    completions: pd.DataFrame
    scores: pd.DataFrame
    effects: pd.DataFrame
    metrics: Mapping[str, float]

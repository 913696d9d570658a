"""What a finished sweep is: the tables that tracking logs, reports draw, and comparisons read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from emo_mlflow.settings.sweep import SweepConfig
from emo_mlflow.types import Direction, FloatArray

KEYS = ["condition_id", "prompt_id", "sample"]


# A condition's controls are random directions at its own place and strength, or heads drawn from anywhere in the layers.
CONTROLLED = ("emotion", "layer", "alpha", "patch_window")


def controlled(condition: Mapping[Any, Any]) -> tuple[Any, ...]:
    """What a condition of an emotion shares with its random controls, and with those of no other condition."""
    is_head = not pd.isna(condition["head"])
    shared = {name: None if pd.isna(condition[name]) else condition[name] for name in CONTROLLED}
    return tuple(None if is_head and name == "layer" else value for name, value in shared.items())


@dataclass(frozen=True, eq=False)
class HeadScreen:
    """How heads were ranked, and what replaces each.

    Attributes:
        effects: as `heads.direct_effects` gives them, for every head up to the target.
        target_layer: the block after which direct effects were measured.
        replacements: by emotion, float32 [n_layers, n_heads, head_dim].
    """

    effects: pd.DataFrame
    target_layer: int
    replacements: Mapping[str, FloatArray]


@dataclass(frozen=True, eq=False)
class SweepResult:
    """The tables of one sweep, each as the artifact of its name holds it.

    Attributes:
        config: the settings as resolved: layers and emotions are listed, never None.
        facts: what was found rather than chosen: versions, device, n_layers, d_model, model and scorer fingerprints,
            the reference emotion, how the prompts were split, the hash of the texts that directions were fitted on.
        prompts: prompt_id, emotion, text of the test prompts.
        fit_prompts: the same of the prompts that directions were fitted on.
        directions: by emotion; none in a sweep over heads.
        conditions: condition_id, kind, emotion, layer, head, alpha, draw, scope, patch_window, n_patched (the sum over the
            condition's cells); layer, head (of head sweeps), alpha, draw and patch_window are nullable.
        completions: KEYS, completion, n_tokens, nll, distinct_2, failure (None where the cell succeeded).
        scores: KEYS and one float32 column per metric, named `scorer.label`; cells that failed have no row.
        effects: condition_id, metric, n, mean_baseline, mean_patched, mean_diff, d_z; metrics are the score columns
            and `fluency.nll`, `fluency.distinct_2`; the baseline has no row.
        metrics: numbers about the run itself: cells per second, tokens per second, peak memory, failed cells, ...
        screen: of a sweep over heads.
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
    screen: HeadScreen | None = None

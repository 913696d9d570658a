"""What a finished study is: the tables that tracking logs and the report draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from emo_mlflow.statistics.moments import Floats
from emo_mlflow.studying.protocol import Design
from emo_mlflow.studying.verdicts import Answer, Verdict


@dataclass(frozen=True, eq=False)
class StudyResult:
    """One study.

    Attributes:
        plan: what was said of cost and power before the first text.
        verdicts: as `verdicts.rung_table` gives it.
        damage: a row per emotion: kl, perplexity_ratio, same_top on neutral passages; accuracy_clean, accuracy_patched, log_probability_change,
            margin, p_noninferior, passed on multiple-choice items.
        others: a row per emotion and metric: mean change of every other label, p_t, p_bh (Benjamini-Hochberg within the emotion).
        changes: by emotion, the own label's change by prompt.
        draws: by emotion and control, the mean change under each random direction.
        examples: emotion, prompt, baseline, patched, change.
        conditions: condition_id, kind, emotion, control, draw, layer, alpha, alpha_unit, dose: of every text that was written.
        completions: condition_id, prompt_id, sample, completion, n_tokens, failure.
        facts: what was found rather than chosen: versions, device, fingerprints, prompts.
        metrics: numbers about the run itself.
    """

    design: Design
    answers: tuple[Answer, ...]
    plan: Sequence[str]
    verdicts: pd.DataFrame
    damage: pd.DataFrame
    others: pd.DataFrame
    changes: Mapping[str, Floats]
    draws: Mapping[tuple[str, str], Floats]
    examples: pd.DataFrame
    conditions: pd.DataFrame
    completions: pd.DataFrame
    facts: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def model(self) -> str:
        """Its name."""
        return str(self.facts.get("model", {}).get("name", ""))

    def of(self, verdict: Verdict) -> tuple[Answer, ...]:
        """The answers with this verdict."""
        return tuple(answer for answer in self.answers if answer.verdict == verdict)

    def void(self, emotion: str) -> tuple[str, ...]:
        """The controls whose texts are broken."""
        rows = self.verdicts[(self.verdicts["emotion"] == emotion) & self.verdicts["void"].astype(bool)]
        return tuple(rows["control"])


def largest_changes(others: pd.DataFrame, emotion: str, n: int = 3) -> pd.DataFrame:
    """The other labels that an emotion's direction changed most, of those significant after correction."""
    rows = others[(others["emotion"] == emotion) & (others["p_bh"] <= 0.05)]
    return rows.iloc[np.argsort(-rows["mean_diff"].abs().to_numpy(), kind="stable")].head(n)

"""Completions to the tables that a finished sweep is made of."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from emo_mlflow import __version__
from emo_mlflow.common.columns import PANDAS, TEXT
from emo_mlflow.prompts.selection import PromptSet
from emo_mlflow.scoring.broken import broken
from emo_mlflow.settings.sweep import SweepConfig
from emo_mlflow.statistics.effects import condition_effects
from emo_mlflow.sweeping.results import SweepResult
from emo_mlflow.sweeping.schemas import COMPLETIONS, CONDITIONS, FLUENCY, KEYS, PROMPTS
from emo_mlflow.sweeping.stages import COMPLETION, Scoring
from emo_mlflow.sweeping.swept import Swept
from emo_mlflow.types import Condition, Prompt

VERSIONED = ("torch", "transformers", "numpy", "onnxruntime", "mlflow")


class Work:
    """The completions so far, as columns (417 bytes a cell instead of 743 as objects), and the stage that they are scored by."""

    def __init__(self, scoring: Scoring) -> None:
        self.scoring = scoring
        self._parts = [COMPLETION.empty_table()]

    def add(self, completions: pa.Table) -> None:
        """Takes in more completions, COMPLETION."""
        self._parts.append(completions.select(COMPLETION.names))

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    @property
    def completions(self) -> pa.Table:
        """All of them, COMPLETION, in the order in which they came."""
        return pa.concat_tables(self._parts)

    def scores(self) -> pd.DataFrame:
        """KEYS and one float32 column per metric, for the cells that did not fail; each distinct text is scored once."""
        # In an order of their own: a scorer that quantises by batch gives a text other last bits in another batch.
        return self.scoring(self.completions.sort_by([(name, "ascending") for name in KEYS])).to_pandas()

    @property
    def n_distinct(self) -> int:
        """Distinct texts among the completions."""
        return len(set(self.scoring.texts(self.completions)))

    @property
    def n_failed(self) -> int:
        """Cells that have no completion."""
        return len(self) - int(self.completions["failure"].null_count)


def prompt_table(prompts: Sequence[Prompt]) -> pd.DataFrame:
    """PROMPTS."""
    before = [None if prompt.before is None else json.dumps(prompt.before, ensure_ascii=False) for prompt in prompts]
    rows = [asdict(prompt) | {"prompt_id": prompt.prompt_id, "before": said} for prompt, said in zip(prompts, before, strict=True)]
    return pd.DataFrame(rows, columns=PROMPTS.names)


def condition_rows(conditions: Sequence[Condition], swept: Swept | None = None) -> pd.DataFrame:
    """CONDITIONS but for n_patched, in the sweep's order; without what is swept, without doses."""
    fields = CONDITIONS.columns[:-1]
    doses = [None if swept is None else swept.dose(condition.condition_id) for condition in conditions]
    rows = [
        [dose if item.name == "dose" else _or_none(getattr(condition, item.name)) for item in fields]
        for condition, dose in zip(conditions, doses, strict=True)
    ]
    table = pd.DataFrame(rows, columns=[item.name for item in fields])
    table = table.astype({item.name: PANDAS[item.type] for item in fields if item.type != TEXT})
    table.loc[~table["kind"].isin(["emotion", "random"]), ["scope", "site", "operation", "alpha_unit", "alpha_schedule"]] = None
    return table


def _or_none(value: Any) -> Any:
    return None if value == "" else value


def condition_table(conditions: Sequence[Condition], completions: pa.Table, swept: Swept) -> pd.DataFrame:
    """CONDITIONS, in the sweep's order."""
    sums = completions.group_by("condition_id").aggregate([("n_patched", "sum")]).to_pydict()
    patched = dict(zip(sums["condition_id"], sums["n_patched_sum"], strict=True))
    return condition_rows(conditions, swept).assign(n_patched=[patched.get(condition.condition_id, 0) for condition in conditions])


def completion_table(completions: pa.Table) -> pd.DataFrame:
    """COMPLETIONS but for `broken`."""
    return completions.select([name for name in COMPLETIONS.names if name != "broken"]).to_pandas()


def with_broken(texts: pd.DataFrame) -> pd.DataFrame:
    """COMPLETIONS."""
    found = broken(texts["completion"].tolist(), texts["nll"], texts["nll_sd"])
    return texts.assign(broken=found)[COMPLETIONS.names]


def one_likelihood(texts: pd.DataFrame) -> pd.DataFrame:
    """Equal texts with the likelihood of the first of them: what a text was computed beside changes the last bits of its number.

    So a condition that changes no text has no difference from the baseline, instead of one that is rounding.
    """
    same = texts.groupby(["prompt_id", "completion", "n_tokens"], sort=False)
    return texts.assign(**{name: same[name].transform("first") for name in ("nll", "nll_sd")})


def in_order(table: pd.DataFrame, conditions: Sequence[Condition], prompts: Sequence[Prompt]) -> pd.DataFrame:
    """Rows by condition, prompt and sample as the sweep lists them, whatever order they were computed in."""
    by_condition = {condition.condition_id: i for i, condition in enumerate(conditions)}
    by_prompt = {prompt.prompt_id: i for i, prompt in enumerate(prompts)}
    order = np.lexsort(
        (
            table["sample"],
            table["prompt_id"].map(by_prompt).astype(int),
            table["condition_id"].map(by_condition).astype(int),
        )
    )
    return table.iloc[order].reset_index(drop=True)


def assemble(
    config: SweepConfig,
    facts: Mapping[str, Any],
    prompts: PromptSet,
    swept: Swept,
    conditions: Sequence[Condition],
    completions: pa.Table,
    scores: pd.DataFrame,
    metrics: Mapping[str, float],
) -> SweepResult:
    """The result of a sweep: its tables, in an order that does not depend on how the work was cut."""
    table = condition_table(conditions, completions, swept)
    scores = in_order(scores, conditions, prompts.test)
    texts = with_broken(one_likelihood(in_order(completion_table(completions), conditions, prompts.test)))
    fluency = texts.loc[texts["failure"].isna(), list(FLUENCY)].rename(columns=FLUENCY).astype(np.float32)
    values = pd.concat([scores, fluency.reset_index(drop=True)], axis="columns")  # both have the cells that succeeded, in one order
    versions = {name: version(name) for name in VERSIONED}
    versions |= {"emo_mlflow": __version__, "python": sys.version.split()[0]}
    return SweepResult(
        config=config,
        facts={**facts, "versions": versions},
        prompts=prompt_table(prompts.test),
        fit_prompts=prompt_table(prompts.fit),
        swept=swept,
        conditions=table,
        completions=texts,
        scores=scores,
        effects=condition_effects(values, table),
        metrics=metrics,
    )

"""Completions to the tables that a finished sweep is made of."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from weakref import finalize

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from emo_mlflow import __version__
from emo_mlflow.common.columns import PANDAS, TEXT
from emo_mlflow.prompts.selection import PromptSet
from emo_mlflow.scoring.broken import broken
from emo_mlflow.settings.sweep import SweepConfig
from emo_mlflow.statistics.effects import condition_effects
from emo_mlflow.statistics.moments import Floats, Mask
from emo_mlflow.sweeping.plan import Plan
from emo_mlflow.sweeping.results import SweepResult
from emo_mlflow.sweeping.schemas import COMPLETIONS, CONDITIONS, EFFECTS, FLUENCY, KEYS, PROMPTS, SCORES
from emo_mlflow.sweeping.stages import COMPLETION
from emo_mlflow.sweeping.swept import Swept
from emo_mlflow.types import Condition, Prompt

VERSIONED = ("torch", "transformers", "numpy", "onnxruntime", "mlflow")
GROUP = 2**17  # cells that are in memory at a time
POSITION = "position"
LIKELIHOOD = ("nll", "nll_sd")
Keys = npt.NDArray[np.uint64]


class Work:
    """The completions so far, and the stage that they are scored by. Of very many, all but the newest are on disk, and tables are made in groups.

    A group is some conditions' cells, as many as fit the memory well; an ordinary sweep is one group. All tables of cells are in the sweep's order,
    whatever order the cells were computed in.

    Args:
        folder: where what does not stay in memory is kept, and the finished tables; None for a folder that is there as long as the result.

    Attributes:
        n_failed: cells that have no completion.
        n_patched: by condition, summed over its cells, once they are scored.
    """

    def __init__(self, plan: Plan, folder: Path | None) -> None:
        self.plan = plan
        self.temporary: TemporaryDirectory[str] | None = None
        if folder is None:
            self.temporary = TemporaryDirectory(prefix="emo-")
            folder = Path(self.temporary.name)
        self.folder = folder
        self.n_failed = 0
        self.n_patched: dict[str, int] = {}
        self._scoring = plan.scoring()
        self._done = np.zeros(len(plan.conditions) * plan.n_per_condition, bool)
        self._recent: list[pa.Table] = []
        self._n_recent, self._parts = 0, list[Path]()
        self._keys, self._texts, self._likelihoods = list[Keys](), list[Keys](), list[pd.DataFrame]()
        self.folder.mkdir(parents=True, exist_ok=True)

    def add(self, completions: pa.Table) -> None:
        """Takes in more completions, COMPLETION, and their scores where they have been scored."""
        positions = self.plan.positions(completions)
        self._done[positions] = True
        self.n_failed += len(completions) - int(completions["failure"].null_count)
        names = [*COMPLETION.names, *(name for name in self._scoring.scorers.metrics if name in completions.column_names)]
        self._recent.append(completions.select(names).append_column(POSITION, pa.array(positions)))
        self._n_recent += len(completions)
        if self._n_recent >= GROUP:
            path = self.folder / f"part-{len(self._parts)}.arrow"
            part = self._newest()
            with pa.ipc.new_file(path, part.schema) as file:
                file.write_table(part)
            self._parts.append(path)
            self._recent, self._n_recent = [], 0

    def is_done(self, cells: pa.Table) -> Mask:
        """Which of the cells have been taken in."""
        return self._done[self.plan.positions(cells)]

    def __len__(self) -> int:
        return int(self._done.sum())

    @property
    def n_distinct(self) -> int:
        """Distinct texts among the completions, once they are scored."""
        return len(np.unique(np.concatenate(self._texts)))

    def score(self) -> None:
        """Writes scores.parquet: KEYS, one float32 column per metric, for cells that did not fail. Each distinct text of a group is scored once."""
        with SCORES.writer(self.folder / "scores.parquet") as write:
            for group in self._groups():
                write(self._scores(group).to_pandas())
                texts = completion_table(group)
                self._keys.append(text_keys(texts))
                self._texts.append(pd.util.hash_array(np.array(self._scoring.texts(group), object)))
                self._likelihoods.append(texts[[*LIKELIHOOD]])
                sums = group.group_by("condition_id").aggregate([("n_patched", "sum")])
                self.n_patched |= zip(sums["condition_id"].to_pylist(), sums["n_patched_sum"].to_pylist(), strict=True)

    def tables(self) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
        """COMPLETIONS but for `broken`, and SCORES, of group after group, once they are scored."""
        same = FirstLikelihoods(np.concatenate(self._keys), pd.concat(self._likelihoods))
        scores = pq.ParquetFile(self.folder / "scores.parquet")
        for i, group in enumerate(self._groups()):
            yield same(self._keys[i], completion_table(group)), scores.read_row_group(i).to_pandas()

    def group_conditions(self) -> Iterator[slice]:
        """Which conditions the groups are of."""
        step = max(1, GROUP // self.plan.n_per_condition)
        return (slice(start, start + step) for start in range(0, len(self.plan.conditions), step))

    def _scores(self, group: pa.Table) -> pa.Table:
        if self._scoring.scorers.metrics[0] in group.column_names:
            scored = group.filter(pc.is_null(group["failure"]))
            return scored.select([*KEYS, *self._scoring.scorers.metrics])
        # In an order of their own: a scorer that quantises by batch gives a text other last bits in another batch.
        ordered = group.sort_by([(name, "ascending") for name in KEYS])
        places = ordered.filter(pc.is_null(ordered["failure"]))[POSITION]
        return self._scoring(ordered).take(pc.sort_indices(places))

    def _newest(self) -> pa.Table:
        return pa.concat_tables(self._recent).sort_by(POSITION).combine_chunks()

    def _groups(self) -> Iterator[pa.Table]:
        newest = [self._newest()] if self._recent else []
        for conditions in self.group_conditions():
            ends = np.array([conditions.start, conditions.stop]) * self.plan.n_per_condition
            # Mapped anew for every group: pages that were read do not stay.
            parts = (*(pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in self._parts), *newest)
            slices = [part.slice(start, end - start) for part in parts for start, end in [np.searchsorted(part[POSITION].to_numpy(), ends)]]
            yield pa.concat_tables(slices).sort_by(POSITION)


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


def completion_table(completions: pa.Table) -> pd.DataFrame:
    """COMPLETIONS but for `broken`."""
    return completions.select([name for name in COMPLETIONS.names if name != "broken"]).to_pandas()


def with_broken(texts: pd.DataFrame) -> pd.DataFrame:
    """COMPLETIONS."""
    found = broken(texts["completion"].tolist(), texts["nll"], texts["nll_sd"])
    return texts.assign(broken=found)[COMPLETIONS.names]


def text_keys(texts: pd.DataFrame) -> Keys:
    """Equal for equal texts that continue one prompt."""
    return np.asarray(pd.util.hash_pandas_object(texts[["prompt_id", "completion", "n_tokens"]], index=False), np.uint64)


class FirstLikelihoods:
    """Gives equal texts the likelihood of the first of them: what a text was computed beside changes the last bits of its number.

    So a condition that changes no text has no difference from the baseline, instead of one that is rounding.

    Args:
        keys: of all texts of a sweep, in its order.
        likelihoods: theirs; missing where they are not known.
    """

    def __init__(self, keys: Keys, likelihoods: pd.DataFrame) -> None:
        self._first: dict[str, tuple[Keys, Floats]] = {}
        for name in LIKELIHOOD:
            values = likelihoods[name].to_numpy()
            known = ~np.isnan(values)
            distinct, first = np.unique(keys[known], return_index=True)
            self._first[name] = distinct, values[known][first]

    def __call__(self, keys: Keys, texts: pd.DataFrame) -> pd.DataFrame:
        """The texts with these likelihoods."""
        return texts.assign(**{name: _looked_up(keys, *first) for name, first in self._first.items()})


def _looked_up(keys: Keys, known: Keys, values: Floats) -> Floats:
    if not len(known):
        return np.full(len(keys), np.nan)
    at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return np.where(known[at] == keys, values[at], np.nan)


def assemble(
    config: SweepConfig, facts: Mapping[str, Any], prompts: PromptSet, swept: Swept, work: Work, metrics: Mapping[str, float]
) -> SweepResult:
    """The result of a sweep whose cells are scored: its tables, in an order that does not depend on how the work was cut."""
    conditions, baseline = condition_rows(work.plan.conditions, swept), None
    files = work.folder / "completions.parquet", work.folder / "effects.parquet"
    with COMPLETIONS.writer(files[0]) as write, EFFECTS.writer(files[1]) as write_effects:
        for own, (texts, scores) in zip(work.group_conditions(), work.tables(), strict=True):
            texts = with_broken(texts)
            write(texts)
            fluency = texts.loc[texts["failure"].isna(), list(FLUENCY)].rename(columns=FLUENCY).astype(np.float32)
            values = pd.concat([scores, fluency.reset_index(drop=True)], axis="columns")  # both have the cells that succeeded, in one order
            rows = conditions.iloc[own]
            if baseline is None:  # which is the first condition
                baseline = values[values["condition_id"] == conditions["condition_id"].iloc[0]]
            else:
                values, rows = pd.concat([baseline, values]), pd.concat([conditions.iloc[:1], rows])
            write_effects(condition_effects(values, rows))
    versions = {name: version(name) for name in VERSIONED}
    versions |= {"emo_mlflow": __version__, "python": sys.version.split()[0]}
    result = SweepResult(
        config=config,
        facts={**facts, "versions": versions},
        prompts=prompt_table(prompts.test),
        fit_prompts=prompt_table(prompts.fit),
        swept=swept,
        conditions=conditions.assign(n_patched=[work.n_patched.get(name, 0) for name in conditions["condition_id"]]),
        streamed=work.folder,
        metrics=metrics,
    )
    if work.temporary is not None:
        finalize(result, work.temporary.cleanup)
    return result

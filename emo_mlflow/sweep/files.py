"""The files of a finished sweep, read and doubted: a run can hold what anybody put there."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from pandas.api.types import is_bool_dtype, is_complex_dtype, is_numeric_dtype

from emo_mlflow.common.names import shown
from emo_mlflow.errors import UserError
from emo_mlflow.settings.tables import PARAMETERS
from emo_mlflow.sweep.results import KEYS

TEXT, NUMBER = "text", "number"
# The columns of each table, and of the scores what every column but the keys is.
TABLES: dict[str, dict[str, str]] = {
    "prompts": {"prompt_id": TEXT, "emotion": TEXT, "text": TEXT},
    "conditions": {
        **dict.fromkeys(("condition_id", "kind", "emotion", "scope"), TEXT),
        **dict.fromkeys(("layer", "alpha", "draw", "patch_window", "n_patched"), NUMBER),
    },
    "completions": {
        **dict.fromkeys(("condition_id", "prompt_id", "completion", "failure"), TEXT),
        **dict.fromkeys(("sample", "n_tokens", "nll", "distinct_2"), NUMBER),
    },
    "scores": {"condition_id": TEXT, "prompt_id": TEXT, "sample": NUMBER},
    "effects": {
        **dict.fromkeys(("condition_id", "metric"), TEXT),
        **dict.fromkeys(("n", "mean_baseline", "mean_patched", "mean_diff", "d_z"), NUMBER),
    },
}
IDENTIFIES = {
    "prompts": ["prompt_id"],
    "conditions": ["condition_id"],
    "completions": KEYS,
    "scores": KEYS,
    "effects": ["condition_id", "metric"],
}
ALWAYS = {"prompts": ["text"], "completions": ["completion"]}  # empty texts are texts
FACTS: dict[str, type] = {"n_layers": int, "model_fingerprint": str, "scorer_fingerprints": dict}
LISTS: dict[str, type | tuple[type, ...]] = {
    "alphas": (int, float), "layers": int, "patch_window": int, "emotions": str, "scorers": str,
}  # fmt: skip


def read_config_file(path: Path, run_id: str) -> dict[str, Any]:
    """config.json: what was found, and under `config` the settings; a setting younger than the run has its default.

    Raises:
        UserError: if it is not what a sweep writes.
    """
    where = f"config.json of run {run_id}"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{where} cannot be read: {shown(str(error))}") from None
    if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
        raise UserError(f"{where} holds no settings of a sweep")
    for name, kind in FACTS.items():
        if not isinstance(content.get(name), kind):
            raise UserError(f"{where}: {name} is {shown(content.get(name))}")
    defaults = {name: parameter.parse(parameter.default) for name, parameter in PARAMETERS.items() if parameter.default}
    settings = {"min_new_tokens": 0, "profile": "", **defaults, **content["config"]}
    for name, value in settings.items():
        if not _is_setting(name, value):
            raise UserError(f"{where}: {name} is {shown(value)}")
    return {**content, "config": settings}


def _is_setting(name: str, value: Any) -> bool:
    if name in LISTS and value is not None:
        kinds = LISTS[name]
        return isinstance(value, list | tuple) and len(value) > 0 and all(_is_plain(x) and isinstance(x, kinds) for x in value)
    return _is_plain(value)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))


def read_table(path: Path, name: str, run_id: str) -> pd.DataFrame:
    """One of `TABLES`.

    Raises:
        UserError: if it is no parquet file, lacks a column, or has one of the wrong kind.
    """
    where = f"{name}.parquet of run {run_id}"
    try:
        # Without partitions: a folder's name is no column. The dtypes are those that pandas wrote, such as nullable integers.
        table = pq.read_table(path, partitioning=None).to_pandas()
    except Exception as error:  # of Arrow, or of pandas over the metadata that the file holds for it
        raise UserError(f"{where} cannot be read: {shown(str(error))}") from None
    kinds: Mapping[str, str] = TABLES[name]
    if not table.columns.is_unique or not all(isinstance(column, str) for column in table.columns):
        raise UserError(f"{where} has columns that are not named, or two of one name")
    if missing := [column for column in kinds if column not in table]:
        raise UserError(f"{where} has no column {missing[0]!r}: it is damaged, or no sweep of this package")
    for column in table.columns if name == "scores" else kinds:
        if not _is_kind(table[column], kinds.get(column, NUMBER)):
            raise UserError(f"{where}: the column {shown(column)} holds something other than {kinds.get(column, NUMBER)}s")
    if name == "conditions":
        _check_conditions(table, where)
    keys = IDENTIFIES[name]
    if table[[*keys, *ALWAYS.get(name, ())]].isna().any(axis=None) or table.duplicated(keys).any():
        raise UserError(f"{where} has rows without {', '.join([*keys, *ALWAYS.get(name, ())])}, or several rows for one")
    return table


def _check_conditions(table: pd.DataFrame, where: str) -> None:
    if not set(table["kind"]) <= {"baseline", "emotion", "random"} or (table["kind"] == "baseline").sum() != 1:
        raise UserError(f"{where} does not have exactly one baseline and else emotions and random controls")
    patched = table[table["kind"] != "baseline"]
    undrawn = patched.loc[patched["kind"] == "random", "draw"].isna().any()
    if patched[["emotion", "layer", "alpha"]].isna().any(axis=None) or undrawn:
        raise UserError(f"{where} has conditions without emotion, layer, alpha or draw")
    for column in ("layer", "draw", "patch_window", *(["head"] if "head" in table else [])):
        if not _is_kind(table[column], NUMBER):
            raise UserError(f"{where}: the column {column} holds something other than {NUMBER}s")
        numbers = table[column].dropna().astype(float)
        if (numbers % 1 != 0).any() or (numbers < 0).any():
            raise UserError(f"{where}: the column {column} holds something other than whole numbers of at least 0")


def check_cells(prompts: pd.DataFrame, conditions: pd.DataFrame, completions: pd.DataFrame, scores: pd.DataFrame) -> None:
    """Refuses tables of one run that do not belong together.

    Raises:
        UserError: if a cell is of a prompt or a condition that is not there, or was scored and not written.
    """
    for name, table in (("completions", completions), ("scores", scores)):
        for key, there in (("prompt_id", prompts), ("condition_id", conditions)):
            unknown = table.loc[~table[key].isin(there[key]), key]
            if len(unknown):
                owner = key.removesuffix("_id")
                raise UserError(f"{name}.parquet has the {owner} {shown(unknown.iloc[0])}, which {owner}s.parquet lacks: the run is damaged")
    if len(scores.merge(completions[KEYS], on=KEYS)) < len(scores):
        raise UserError("scores.parquet has cells that completions.parquet lacks: the run is damaged")


def _is_kind(column: pd.Series, kind: str) -> bool:
    if kind == NUMBER:
        if not is_numeric_dtype(column.dtype) or is_bool_dtype(column.dtype) or is_complex_dtype(column.dtype):
            return bool(column.isna().all())
        return not bool(np.isinf(column.to_numpy(dtype=float, na_value=np.nan)).any())
    if isinstance(column.dtype, pd.StringDtype):
        return True
    return all(isinstance(value, str) or value is None or value is pd.NA or value != value for value in column)

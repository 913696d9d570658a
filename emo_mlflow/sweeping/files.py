"""The files of a finished sweep, read and doubted: a run can hold what anybody put there."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pandas as pd

from emo_mlflow.common.names import shown
from emo_mlflow.errors import UserError
from emo_mlflow.settings.sweep import BEFORE, SweepConfig
from emo_mlflow.settings.tables import PARAMETERS
from emo_mlflow.sweeping.schemas import CONDITIONS, KEYS, TABLES
from emo_mlflow.types import ASKING, Edit, Kind

FACTS: dict[str, type] = {"n_layers": int, "model_fingerprint": str, "scorer_fingerprints": dict}
# The settings that are lists, and what their items are.
LISTS = {name: get_args(hint)[0] for name, hint in get_type_hints(SweepConfig).items() if get_origin(hint) is tuple}


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
    if isinstance(norms := content.get("residual_norms"), str):  # as earlier versions wrote them
        with suppress(ValueError, RecursionError):
            content["residual_norms"] = json.loads(norms)
    defaults = {name: parameter.parse(parameter.default) for name, parameter in PARAMETERS.items() if parameter.default}
    settings = {"min_new_tokens": 0, "profile": "", **defaults, **BEFORE, **content["config"]}
    for name, value in settings.items():
        if not _is_setting(name, value):
            raise UserError(f"{where}: {name} is {shown(value)}")
    return {**content, "config": settings}


def _is_setting(name: str, value: Any) -> bool:
    if name in LISTS and value is not None:
        kinds = (int, float) if LISTS[name] is float else LISTS[name]  # JSON has 1 where Python has 1.0
        return isinstance(value, list | tuple) and len(value) > 0 and all(_is_plain(x) and isinstance(x, kinds) for x in value)
    return _is_plain(value)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))


def read_table(path: Path, name: str, run_id: str) -> pd.DataFrame:
    """One of `schemas.TABLES`.

    Raises:
        UserError: if it is no parquet file, lacks a column, or has one of the wrong kind.
    """
    where = f"{name}.parquet of run {run_id}"
    table = TABLES[name].read(path, where)
    if name == "conditions":
        _check_conditions(table, where)
    return table


def with_settings(conditions: pd.DataFrame, config: Mapping[str, Any]) -> pd.DataFrame:
    """Conditions of an earlier version, where what was the same for a whole sweep was in its settings alone."""
    filled = conditions.copy()
    for name in set(CONDITIONS.later) & set(config):
        whose = ["random"] if name == "seed" else ["emotion", "random"]
        missing = filled[name].isna() & filled["kind"].isin(whose)
        filled.loc[missing, name] = config[name]
    return filled


def _check_conditions(table: pd.DataFrame, where: str) -> None:
    if not set(table["kind"]) <= set(get_args(Kind)) or (table["kind"] == "baseline").sum() != 1:
        raise UserError(f"{where} does not have exactly one baseline and else conditions of the kinds {', '.join(get_args(Kind)[1:])}")
    if table.loc[table["kind"].isin(ASKING), ["emotion", "front"]].isna().any(axis=None):
        raise UserError(f"{where} has conditions that ask for an emotion, without its name or what is asked")
    patched = table[table["kind"].isin(["emotion", "random"])]
    undrawn = patched.loc[patched["kind"] == "random", "draw"].isna().any()
    if patched[["emotion", "layer", "alpha"]].isna().any(axis=None) or undrawn:
        raise UserError(f"{where} has conditions without emotion, layer, alpha or draw")
    for edits in sorted({text for text in patched["edits"].dropna() if text}):
        try:
            [Edit.read(part) for part in edits.split(";")]
        except ValueError:
            raise UserError(f"{where} has a condition whose edits are {shown(edits)}; they are like 'joy@3*1;anger@3*-0.5'") from None


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

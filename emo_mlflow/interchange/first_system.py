"""A sweep in the pickle structure of the first system, for people who have code for it. Written here, never read."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from emo_mlflow.common.names import file_stem
from emo_mlflow.errors import UserError
from emo_mlflow.sweeping.files import check_cells

Metrics = dict[str, dict[str, float]]
SETTING = ["emotion", "layer", "alpha"]


class Tables(Protocol):
    """What the export reads of a sweep."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The settings, by name."""

    @property
    def prompts(self) -> pd.DataFrame:
        """prompt_id, text."""

    @property
    def conditions(self) -> pd.DataFrame:
        """A row per condition."""

    @property
    def completions(self) -> pd.DataFrame:
        """A row per cell."""

    @property
    def scores(self) -> pd.DataFrame:
        """A row per cell, a column per metric `scorer.label`."""


def export_legacy(sweep: Tables, folder: Path) -> list[Path]:
    """Writes `<model>_residual_sweep.pkl` and, if the sweep has random controls, `<model>_random_sweep.pkl`.

    Texts are prompt and continuation together, as the first system kept them.

    Raises:
        UserError: if the structure cannot hold the sweep: a prompt's text occurs twice, cells failed or are missing, or
            several samples, or several windows, would have to share one place.
    """
    _check(sweep)
    cells = _cells(sweep)
    name = file_stem(str(sweep.config["model"]))
    folder.mkdir(parents=True, exist_ok=True)
    payloads = {f"{name}_residual_sweep.pkl": residual_payload(sweep, cells)}
    if (sweep.conditions["kind"] == "random").any():
        payloads[f"{name}_random_sweep.pkl"] = random_payload(sweep, cells)
    for file, payload in payloads.items():
        with (folder / file).open("wb") as stream:
            pickle.dump(payload, stream, protocol=4)
    return [folder / file for file in payloads]


def residual_payload(sweep: Tables, cells: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The first file: baseline and sweep_results[emotion][layer][alpha], each texts and metrics keyed by prompt."""
    baseline = sweep.conditions.loc[sweep.conditions["kind"] == "baseline", "condition_id"].iloc[0]
    results: dict[str, Any] = {}
    for condition_id, emotion, layer, alpha, _ in _settings(sweep, "emotion"):
        results.setdefault(emotion, {}).setdefault(layer, {})[alpha] = _by_prompt(cells[condition_id])
    return {
        "profile": sweep.config["profile"],
        "model": sweep.config["model"],
        "prompts": sweep.prompts["text"].tolist(),
        "baseline": _by_prompt(cells[baseline]),
        "sweep_results": results,
        "alpha_values": [float(alpha) for alpha in sweep.config["alphas"]],
        "patch_window": _window(sweep),
        "sequence_length": int(sweep.config["sequence_length"]),
    }


def random_payload(sweep: Tables, cells: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The second: random_results[emotion][layer][draw][alpha] and emotion_results without draw, lists of cells."""
    random: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for condition_id, emotion, layer, alpha, draw in _settings(sweep, "random"):
        random.setdefault(emotion, {}).setdefault(layer, {}).setdefault(draw, {})[alpha] = cells[condition_id]
    for condition_id, emotion, layer, alpha, _ in _settings(sweep, "emotion"):
        own.setdefault(emotion, {}).setdefault(layer, {})[alpha] = cells[condition_id]
    return {
        "profile": sweep.config["profile"],
        "model": sweep.config["model"],
        "alpha_values": [float(alpha) for alpha in sweep.config["alphas"]],
        "random_results": random,
        "emotion_results": own,
        "num_random": int(sweep.conditions["draw"].nunique()),
    }


def _check(sweep: Tables) -> None:
    check_cells(sweep.prompts, sweep.conditions, sweep.completions, sweep.scores)
    repeated = sweep.prompts["text"][sweep.prompts["text"].duplicated()]
    if len(repeated):
        raise UserError(
            f"the prompt {repeated.iloc[0][:40]!r} occurs twice: the first system's files are keyed by prompt"
        )
    if sweep.completions["sample"].nunique() > 1:
        raise UserError("the sweep has several samples per prompt: the first system's files hold one")
    for kind, keys in (("emotion", SETTING), ("random", [*SETTING, "draw"])):
        own = sweep.conditions[sweep.conditions["kind"] == kind]
        if own.duplicated(keys).any():
            raise UserError("the sweep has several windows: the first system's files hold one (patch_window)")
    lacking = len(sweep.conditions) * len(sweep.prompts) - len(sweep.scores)
    if lacking:
        raise UserError(f"{lacking} cells have no score: the first system's files have no place for that")


def _window(sweep: Tables) -> int | None:
    windows = sweep.conditions["patch_window"].dropna()
    return int(windows.iloc[0]) if len(windows) else None


def _settings(sweep: Tables, kind: str) -> list[tuple[str, str, int, float, int]]:
    """condition_id, emotion, layer, alpha and draw (-1 where there is none) of the conditions of a kind."""
    own = sweep.conditions[sweep.conditions["kind"] == kind]
    columns = (own["layer"].astype(int), own["alpha"].astype(float), own["draw"].fillna(-1).astype(int))
    numbers = (column.tolist() for column in columns)
    return list(zip(own["condition_id"].tolist(), own["emotion"].tolist(), *numbers, strict=True))


def _cells(sweep: Tables) -> dict[str, list[dict[str, Any]]]:
    """Of each condition the cells in the prompts' order: prompt, text, metrics."""
    keys = ["condition_id", "prompt_id", "sample"]
    texts = dict(zip(sweep.prompts["prompt_id"], sweep.prompts["text"], strict=True))
    order = {prompt_id: i for i, prompt_id in enumerate(texts)}
    metrics = [str(column) for column in sweep.scores.columns if column not in keys]
    split = [metric.partition(".")[::2] for metric in metrics]
    table = sweep.completions[[*keys, "completion"]].merge(sweep.scores, on=keys)
    table = table.iloc[table["prompt_id"].map(order).argsort(kind="stable")]
    found: dict[str, list[dict[str, Any]]] = {}
    values = table[metrics].to_numpy(float)
    columns = (table[name] for name in ("condition_id", "prompt_id", "completion"))
    for row, (condition_id, prompt_id, completion) in enumerate(zip(*columns, strict=True)):
        scores: Metrics = {}
        for (scorer, label), value in zip(split, values[row], strict=True):
            scores.setdefault(scorer, {})[label] = float(value)
        prompt = texts[prompt_id]
        found.setdefault(condition_id, []).append({"prompt": prompt, "text": prompt + completion, "metrics": scores})
    return found


def _by_prompt(cells: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "texts": {cell["prompt"]: cell["text"] for cell in cells},
        "metrics": {cell["prompt"]: cell["metrics"] for cell in cells},
    }

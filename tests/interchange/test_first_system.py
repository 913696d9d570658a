"""The first system's files: their structure, key by key, and what they cannot hold."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from synthetic import METRICS, as_source, synthetic_sweep

from emo_mlflow.comparison import Source
from emo_mlflow.errors import UserError
from emo_mlflow.interchange.first_system import export_legacy

LAYERS, ALPHAS, EMOTIONS = (1, 3), (1.0, 2.0), ("gratitude", "anger")


def sweep(**options: Any) -> Source:
    """A small sweep."""
    chosen = {
        "layers": LAYERS,
        "alphas": ALPHAS,
        "emotions": EMOTIONS,
        "n_random": 2,
        "n_prompts": 4,
        "scope": "window",
        **options,
    }
    return as_source(synthetic_sweep("org/model a", **chosen))


def read(path: Path) -> Any:
    """The pickle, which this test itself wrote."""
    return pickle.loads(path.read_bytes())


def test_residual_sweep_has_the_first_system_s_structure(tmp_path: Path) -> None:
    """Guards against a renamed key, numpy keys that do not equal ints, and metrics that are not nested."""
    source = sweep()
    files = export_legacy(source, tmp_path)
    assert [file.name for file in files] == ["org_model_a_residual_sweep.pkl", "org_model_a_random_sweep.pkl"]
    data = read(files[0])
    assert list(data) == [
        "profile",
        "model",
        "prompts",
        "baseline",
        "sweep_results",
        "alpha_values",
        "patch_window",
        "sequence_length",
    ]
    assert (data["profile"], data["model"], data["alpha_values"], data["patch_window"], data["sequence_length"]) == (
        "seed",
        "org/model a",
        [1.0, 2.0],
        3,
        30,
    )
    assert data["prompts"] == source.prompts["text"].tolist()
    assert list(data["sweep_results"]) == list(EMOTIONS)
    for emotion in EMOTIONS:
        assert list(data["sweep_results"][emotion]) == list(LAYERS)
        assert all(type(layer) is int for layer in data["sweep_results"][emotion])
        for layer in LAYERS:
            assert list(data["sweep_results"][emotion][layer]) == list(ALPHAS)
            for cell in data["sweep_results"][emotion][layer].values():
                check_by_prompt(cell, data["prompts"])
    check_by_prompt(data["baseline"], data["prompts"])


def check_by_prompt(cell: Any, prompts: list[str]) -> None:
    """texts: prompt to text; metrics: prompt to {scorer: {label: float}}."""
    assert list(cell) == ["texts", "metrics"] and list(cell["texts"]) == list(cell["metrics"]) == prompts
    for prompt in prompts:
        assert cell["texts"][prompt].startswith(prompt) and cell["texts"][prompt] != prompt
        labels = [f"{scorer}.{label}" for scorer, values in cell["metrics"][prompt].items() for label in values]
        assert labels == list(METRICS)
        assert all(type(v) is float for values in cell["metrics"][prompt].values() for v in values.values())


def test_random_sweep_has_the_first_system_s_structure(tmp_path: Path) -> None:
    """Guards against draws and alphas in the other order, and lists that are dictionaries."""
    data = read(export_legacy(sweep(), tmp_path)[1])
    assert list(data) == ["profile", "model", "alpha_values", "random_results", "emotion_results", "num_random"]
    assert data["num_random"] == 2
    entries = data["random_results"]["anger"][3]
    assert list(entries) == [0, 1] and list(entries[1]) == [1.0, 2.0]
    assert list(data["emotion_results"]["anger"][3]) == [1.0, 2.0]
    for cells in (entries[1][2.0], data["emotion_results"]["anger"][3][2.0]):
        assert [list(cell) for cell in cells] == [["prompt", "text", "metrics"]] * 4


def test_values_are_those_of_their_cell(tmp_path: Path) -> None:
    """Guards against scores of another prompt or condition: rows of the tables may be in any order."""
    source = sweep()
    shuffled = replace(
        source,
        scores=source.scores.sample(frac=1, random_state=0),
        completions=source.completions.sample(frac=1, random_state=1),
    )
    data = read(export_legacy(shuffled, tmp_path)[0])
    own = source.conditions
    condition = own[
        (own["kind"] == "emotion") & (own["emotion"] == "anger") & (own["layer"] == 3) & (own["alpha"] == 2.0)
    ].iloc[0]
    scores = source.scores[source.scores["condition_id"] == condition["condition_id"]].set_index("prompt_id")[
        "goemotions.anger"
    ]
    for prompt_id, text in zip(source.prompts["prompt_id"], source.prompts["text"], strict=True):
        assert data["sweep_results"]["anger"][3][2.0]["metrics"][text]["goemotions"]["anger"] == pytest.approx(
            scores[prompt_id]
        )


def test_without_random_controls_there_is_one_file(tmp_path: Path) -> None:
    """Guards against an empty second file."""
    assert len(export_legacy(sweep(n_random=0), tmp_path / "new" / "folder")) == 1
    assert read(tmp_path / "new" / "folder" / "org_model_a_residual_sweep.pkl")["sweep_results"]


@pytest.mark.parametrize("what", ["repeated prompt", "samples", "failed cells", "windows"])
def test_what_the_structure_cannot_hold_is_refused(tmp_path: Path, what: str) -> None:
    """Guards against a dictionary in which one cell overwrites another."""
    source = sweep(samples=2) if what == "samples" else sweep()
    if what == "repeated prompt":
        source = replace(source, prompts=source.prompts.assign(text="the same"))
    elif what == "failed cells":
        source = replace(source, scores=source.scores.iloc[1:])
    elif what == "windows":
        own = source.conditions[source.conditions["kind"] == "emotion"]
        source = replace(source, conditions=pd.concat([source.conditions, own.assign(patch_window=5)]))
    with pytest.raises(UserError, match="the first system's files"):
        export_legacy(source, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_model_s_name_stays_inside_the_folder(tmp_path: Path) -> None:
    """Guards against a name that is a path."""
    source = sweep()
    evil = SimpleNamespace(**{**vars(source), "config": {**source.config, "model": "../../etc/x"}})
    assert all(file.parent == tmp_path / "out" for file in export_legacy(evil, tmp_path / "out"))

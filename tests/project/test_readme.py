"""What the README tells people to type works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from synthetic import synthetic_sweep

from emo_mlflow.scoring.cards import embedded_folder
from emo_mlflow.settings.profiles import PROFILES
from emo_mlflow.settings.sweep import make_config
from emo_mlflow.settings.tables import PARAMETERS
from emo_mlflow.tracking.sweep_run import SweepRun

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    """Against a store that holds a sweep, the code of the README runs as it stands."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    MlflowClient(uri).create_experiment("study", artifact_location=str(tmp_path / "artifacts"))
    result = synthetic_sweep("smollm2-135m", n_prompts=4, n_layers=3, n_random=1)
    with SweepRun.open(result.config, experiment="study") as run:
        run.log(result)
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    exec(compile(code, "README.md", "exec"), {})
    assert "gratitude" in capsys.readouterr().out


def test_the_parameters_of_the_examples_are_known():
    for command in re.findall(r"^mlflow run \. (?!-e).*$", README, flags=re.M):
        given = dict(re.findall(r"-P (\w+)=(\S+)", command))
        assert set(given) <= {*PARAMETERS, "profile"}, command
        assert make_config(given.pop("profile", "smoke"), given)
    for profile in PROFILES:
        assert f"`{profile}`" in README


def test_the_pictures_exist():
    for path in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / path).is_file(), path


def test_the_map_is_the_tree():
    """Both ways: a package that the map omits is not found, and one that is gone is looked for."""
    listing = README.split("```text\nemo_mlflow/\n")[1].split("```")[0]
    mapped = {word for line in listing.splitlines() if line.startswith("  ") for word in re.findall(r"\S+", line.split("  ")[1])}
    package = ROOT / "emo_mlflow"
    folders = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert mapped == folders | {path.name for path in package.glob("*.py")} - {"__init__.py"}


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        (r"`goemotions\.\*`.*?macro-F1 ([\d.]+)", ("goemotions", "macro_f1")),
        (r"`sentiment\.\*`.*?macro-F1 ([\d.]+)", ("sentiment", "macro_f1")),
        (r"`politeness\.\*`.*?Pearson r ([\d.]+)", ("politeness", "pearson_r")),
    ],
)
def test_the_scorers_figures_are_those_of_its_card(pattern, path):
    """A figure in a document that nothing checks outlives what it was measured on."""
    found = yaml.safe_load((embedded_folder() / "card.yaml").read_text(encoding="utf-8"))["quality"]
    for key in path:
        found = found[key]
    assert float(re.search(pattern, README)[1]) == pytest.approx(found, abs=0.0051)

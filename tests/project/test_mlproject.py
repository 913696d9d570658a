"""MLproject is made from the settings, and what it hands to the shell reaches the command as it is."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from mlflow.projects._project_spec import load_project

from emo_mlflow.cli import main as cli
from emo_mlflow.settings.mlproject import SHOWN, mlproject
from emo_mlflow.settings.tables import ENTRY_POINTS

ROOT = Path(__file__).parents[2]
HOSTILE_VALUES = (
    "a b", "'; touch executed; '", '"$(touch executed)"', "`touch executed`", "a\nb", "-x", "--help", "*", "%s",
    "{model}", "é 🙂", "$HOME", "\\", "#x",
)  # fmt: skip


def projects():
    found = [ROOT, *sorted(path.parent for path in (ROOT / "projects").rglob("MLproject"))]
    return [(folder, entry) for folder in found for entry in yaml.safe_load((folder / "MLproject").read_text())["entry_points"]]


@pytest.mark.parametrize(("folder", "entry"), projects(), ids=lambda value: getattr(value, "name", value))
def test_parameters_of_every_entry_point_reach_the_command_as_they_are(folder, entry, tmp_path):
    """Guards: a parameter that MLproject hands to the shell without quotes: cut in two, expanded, or run."""
    report = "import json, sys\nopen('calls', 'a').write(json.dumps(sys.argv[1:]) + '\\n')\n"
    program = tmp_path / "bin" / "emo-mlflow"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\n{report}", encoding="utf-8")
    program.chmod(0o755)
    place = tmp_path / "place"
    place.mkdir()
    (place / "file").write_text("")
    parameters = yaml.safe_load((folder / "MLproject").read_text())["entry_points"][entry].get("parameters", {})
    point = load_project(str(folder)).get_entry_point(entry)
    environment = {**os.environ, "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}

    def calls(value):
        (place / "calls").unlink(missing_ok=True)
        command = point.compute_command(dict.fromkeys(parameters, value), None)
        subprocess.run(["bash", "-c", command], cwd=place, env=environment, capture_output=True, check=True)
        return [json.loads(line) for line in (place / "calls").read_text().splitlines()]

    plain = calls("plain")
    assert plain
    for value in HOSTILE_VALUES:
        assert calls(value) == [[word.replace("plain", value) for word in call] for call in plain], value
    assert not (place / "executed").exists()


def test_it_is_made_from_the_settings():
    """A parameter that MLproject lacks would reach the command under a name that it does not know."""
    assert (ROOT / "MLproject").read_text(encoding="utf-8") == mlproject(), "python -m emo_mlflow.settings.mlproject > MLproject"


def options_understood(entry: str, values: dict[str, str]) -> dict[str, str]:
    """What the command line understands when MLflow runs an entry point with these parameters."""
    command = load_project(str(ROOT)).get_entry_point(entry).compute_command(values, None)
    program, name, *arguments = shlex.split(command)
    assert (program, name) == ("emo-mlflow", ENTRY_POINTS[entry].command)
    parsed = cli.main.commands[name].make_context(name, arguments).params
    return {key: value for key, value in parsed.items() if value}


@pytest.mark.parametrize("entry", ENTRY_POINTS)
def test_unset_parameters_leave_the_defaults_alone(entry):
    """MLflow fills in a default for each parameter, which must not override what a profile says."""
    point = ENTRY_POINTS[entry]
    shown = {name: point.parameters[name].default for name in SHOWN & set(point.parameters)}
    assert options_understood(entry, {}) == shown | ({"profile": next(iter(point.profiles))} if point.profiles else {})


@pytest.mark.parametrize("entry", ENTRY_POINTS)
def test_every_parameter_has_an_option(entry):
    """Negative numbers look like options, and a folder's name may hold spaces and quotes."""
    called = ENTRY_POINTS[entry].in_project
    values = {name: f'-1,{name}\'s "$HOME" `x`;&|*' for name in called}
    assert options_understood(entry, values) == {called[name]: value for name, value in values.items()}
    parameters = [item for item in cli.main.commands[ENTRY_POINTS[entry].command].params if item.name not in ("tracking_uri", "experiment")]
    assert {item.name for item in parameters} == set(called.values())

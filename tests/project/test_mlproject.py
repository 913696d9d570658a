"""What MLproject hands to the shell reaches the command as it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from mlflow.projects._project_spec import load_project

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

"""The seed's study: its steps, their order, and what reaches them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from mlflow.projects._project_spec import load_project

from emo_mlflow.cli.main import main

PROJECT = Path(__file__).parents[2] / "projects" / "seed_study"
REPORT = 'import json, os, sys\nprint(json.dumps([*sys.argv[1:], os.environ.get("MLFLOW_RUN_ID")]))\n'


def steps(folder: Path, values: dict[str, str], failing: str = "none") -> tuple[int, list[list[str | None]]]:
    """Runs the project's command with an `emo-mlflow` that reports its arguments, and fails at one command."""
    program = folder / "emo-mlflow"
    program.write_text(f"#!{sys.executable}\n{REPORT}sys.exit(sys.argv[1] == {failing!r})\n", encoding="utf-8")
    program.chmod(0o755)
    command = load_project(str(PROJECT)).get_entry_point("main").compute_command(values, None)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "MLFLOW_RUN_ID": "parent"}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, check=False)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_every_model_goes_through_every_step(tmp_path: Path):
    """Guards: names with spaces cut in two, quotes that the shell runs, options that a command does not have, and steps that write
    into the project's own run."""
    names = ["gpt2_small", "my models/x 'y' $(date)"]
    code, done = steps(tmp_path, {"models": ",".join(names), "profile": "baseline"})
    assert code == 0
    assert [step[0] for step in done] == ["vectors", "sweep", "heads"] * 2 + ["compare"] * 2
    assert [step[1] for step in done[:6]] == [f"--model={name}" for name in names for _ in range(3)]
    assert all(step[-1] is None for step in done)
    for command, *arguments, _ in done:
        assert command is not None
        main.commands[command].make_context(command, [argument for argument in arguments if argument is not None])
    assert "--profile=baseline" in done[1] and "--layers=0-11" in done[1] and "--patch-window=3" in done[1]


def test_a_step_that_fails_stops_the_study(tmp_path: Path):
    """Guards: a comparison of what happens to be there."""
    code, done = steps(tmp_path, {}, failing="sweep")
    assert code != 0 and [step[0] for step in done] == ["vectors", "sweep"]


def test_no_models_is_a_mistake(tmp_path: Path):
    """Guards: a study of nothing that compares what other runs left in the experiment."""
    code, done = steps(tmp_path, {"models": ""})
    assert code == 2 and not done


# Takes down what MLflow asks uv for, and looks whether every file that a requirement names is where it says.
UV = """
import os, sys
from pathlib import Path
words = sys.argv[1:]
if words[0] == "venv":
    folder = Path(next(word for word in words[1:] if word.startswith("/"))) / "bin"
    folder.mkdir(parents=True)
    (folder / "activate").write_text("")
    sys.exit()
if "-r" in words:
    for line in Path(words[words.index("-r") + 1]).read_text().splitlines():
        name = line.partition(" #")[0].strip()
        if name.startswith("--constraint") and not Path(name.split()[1]).is_file():
            sys.exit(f"Could not open requirements file: {name.split()[1]}")
        if name.startswith(".") and not (Path(name) / "setup.cfg").is_file():
            sys.exit(f"{name} is no project")
        if name[:1] in ("-", "."):
            with open(os.environ["UV_LOG"], "a") as log:
                log.write(name + chr(10))
"""


@pytest.mark.skipif(not (PROJECT.parents[1] / ".git").exists() or shutil.which("git") is None, reason="from a clone, with git")
@pytest.mark.parametrize("where", ["path", "git"])
def test_its_environment_is_made_from_where_mlflow_puts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str):
    """Guards: `Could not open requirements file: '../../constraints.txt'`, for MLflow installs from a folder of links, elsewhere."""
    for name, code in (("uv", UV), ("emo-mlflow", "")):
        (tmp_path / name).write_text(f"#!{sys.executable}\n{code}", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("UV_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("MLFLOW_ENV_ROOT", str(tmp_path / "environments"))
    uri = str(PROJECT)
    if where == "git":
        subprocess.run(["git", "clone", "-q", str(PROJECT.parents[1]), str(tmp_path / "clone")], check=True)
        uri = f"file://{tmp_path / 'clone'}#projects/seed_study"
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    try:
        done = mlflow.projects.run(uri, parameters={"models": "smollm2-135m"}, env_manager="uv")
    finally:
        mlflow.set_tracking_uri(before)
    assert done.get_status() == "FINISHED"
    assert (tmp_path / "log").read_text().splitlines() == ["--constraint repository/constraints.txt", "./repository"]

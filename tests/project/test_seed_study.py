"""The seed's study: its steps, their order, and what reaches them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

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

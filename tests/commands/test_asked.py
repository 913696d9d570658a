"""What a person mistyped is said in a second: before torch, MLflow and the model are loaded."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from tiny_models import save_tiny

from emo_mlflow.commands.asked import begin, check_asked
from emo_mlflow.errors import UserError


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"dataset": "mine.csv"}, r"dataset='mine\.csv' does not exist.*looked for /.*/mine\.csv"),
        ({"layers": "40"}, "layer 40 does not exist: the model has layers 0 to 29"),
        ({"layers": "0-3,4", "model": "model"}, "layer 4 does not exist: the model has layers 0 to 3"),
        ({"model": "./nothing"}, "no such folder"),
    ],
)
def test_mistakes_that_a_small_file_tells(given, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "model", "gpt2")
    with pytest.raises(UserError, match=match):
        check_asked(given, None)


def test_what_is_not_known_yet_is_left_for_later(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "model", "llama")
    (tmp_path / "mine.csv").touch()
    for given in (
        {}, {"dataset": "mine.csv", "layers": "all"}, {"layers": "0-3", "model": "model"}, {"model": "owner/unknown", "layers": "99"},
        {"layers": "joy:3,fear:99"}, {"resume": "0" * 32, "dataset": "gone.csv"},
    ):  # fmt: skip
        check_asked(given, None)


def test_the_first_line_names_what_is_gone_on_with():
    said: list[str] = []
    for given in ({}, {"model": " gpt2 ", "resume": "auto"}, {"model_a": "gpt2"}, {"resume": "0" * 32}):
        begin("Sweep", given, None, said.append)
    names = ("smollm2-135m", "gpt2", "gpt2", "0" * 32)
    assert said == [f"Sweep      {name}: reading what it needs" for name in names]


@pytest.mark.parametrize("command", ["sweep", "vectors", "study", "heads"])
def test_nothing_large_is_loaded_for_it(command, tmp_path):
    """Guards: 34 seconds until a missing file is named."""
    code = f"""
import sys
from emo_mlflow.cli.main import main
try:
    main([{command!r}, "--dataset", "mine.csv"])
except SystemExit as end:
    print(end.code, sorted(set(sys.modules) & {{"torch", "mlflow", "transformers", "pandas", "scipy"}}))
"""
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.split("\n")[0] == "2 []" and f"looked for {tmp_path}/mine.csv" in done.stderr
    assert time.monotonic() - start < 20

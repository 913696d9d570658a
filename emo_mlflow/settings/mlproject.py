"""MLproject, made from the parameters: `python -m emo_mlflow.settings.mlproject > MLproject`."""

from __future__ import annotations

from emo_mlflow.settings.profiles import DEFAULT
from emo_mlflow.settings.tables import ENTRY_POINTS, EntryPoint

HEAD = """\
# Made by `python -m emo_mlflow.settings.mlproject`: change the settings there, not this file.
# Each entry point calls the `emo-mlflow` command; `emo-mlflow sweep --help` says what each parameter means.
# An empty parameter is not set: the profile's value holds, and, where the profile has none, the default.
# Lists are separated by commas, without spaces. A relative path is taken from this folder.
name: emo_mlflow

python_env: python_env.yaml

entry_points:
"""
SHOWN = {"model", "profile"}  # whose defaults are written, so that MLflow shows them


def mlproject() -> str:
    """The content of MLproject."""
    return HEAD + "\n\n".join(_entry(name, entry) for name, entry in ENTRY_POINTS.items()) + "\n"


def _entry(name: str, entry: EntryPoint) -> str:
    defaults = {"profile": DEFAULT} | {key: item.default for key, item in entry.parameters.items()}
    lines = [f"  {name}:", "    parameters:"]
    words = [f"emo-mlflow {entry.command}"]
    for called, key in entry.in_project.items():
        default = defaults[key] if key in SHOWN else '""'
        lines.append(f"      {called}: {{type: string, default: {default}}}")
        words.append(f"--{key.replace('_', '-')}={{{called}}}")
    return "\n".join([*lines, f'    command: "{" ".join(words)}"'])


if __name__ == "__main__":
    print(mlproject(), end="")

"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from emo_mlflow.settings.declared import Parameter
from emo_mlflow.settings.profiles import DEFAULT, PROFILES

STORE_OPTIONS = (
    click.option(
        "--tracking-uri", default=None, help="MLflow tracking store; default: MLFLOW_TRACKING_URI or ./mlflow.db."
    ),
    click.option("--experiment", default=None, help="MLflow experiment; default: the active one."),
)


Command = Callable[..., Any]


def parameter_options(
    table: Mapping[str, Parameter], profiles: Mapping[str, Mapping[str, str]] | None = None
) -> Callable[[Command], Command]:
    """Adds an option per parameter; an empty text is as good as none, so that MLproject can pass them all on."""

    def add(command: Command) -> Command:
        for name, parameter in reversed(list(table.items())):
            by_profile = [f"{p}: {values[name]}" for p, values in (profiles or {}).items() if name in values]
            default = "; ".join([*([parameter.default] if parameter.default else []), *by_profile])
            text = parameter.help + (f"  [{default}]" if default else "")
            command = click.option(f"--{name.replace('_', '-')}", name, default=None, help=text)(command)
        return command

    return add


def profile_option(command: Command) -> Command:
    """Adds the profile that single parameters override."""
    text = f"Defaults that single options override: {', '.join(PROFILES)}."
    return click.option("--profile", default=DEFAULT, show_default=True, help=text)(command)


def store_options(command: Command) -> Command:
    """Adds where MLflow keeps its runs."""
    for option in reversed(STORE_OPTIONS):
        command = option(command)
    return command

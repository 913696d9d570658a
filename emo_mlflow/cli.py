"""The `emo-mlflow` command: options to settings to work. Every rule lives in the modules that it calls."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from emo_mlflow import __version__
from emo_mlflow.config import PARAMETERS, PROFILES
from emo_mlflow.errors import UserError

STORE_OPTIONS = (
    click.option("--tracking-uri", default=None, help="MLflow tracking store; default: MLFLOW_TRACKING_URI or ./mlflow.db."),
    click.option("--experiment", default=None, help="MLflow experiment; default: the active one."),
)


class Group(click.Group):
    """Prints a user's mistake as one line, and exits with 2; an interrupt exits with 130."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(2)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            sys.exit(130)


def sweep_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds an option per parameter of a sweep; an empty text is as good as none, so that MLproject can pass them all on."""
    for name, parameter in reversed(PARAMETERS.items()):
        by_profile = {p: values[name] for p, values in PROFILES.items() if name in values}
        default = "; ".join([parameter.default or "sequence_length", *(f"{p}: {v}" for p, v in by_profile.items())])
        option = click.option(f"--{name.replace('_', '-')}", name, default=None, help=f"{parameter.help}  [{default}]")
        command = option(command)
    return command


def store_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds where MLflow keeps its runs."""
    for option in reversed(STORE_OPTIONS):
        command = option(command)
    return command


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__)
def main() -> None:
    """Inject emotion directions into a language model as it writes, and measure what changes.

    `sweep` does an experiment and logs it to MLflow; `compare` does the statistics over sweeps.
    """


@main.command()
@click.option("--profile", type=click.Choice(list(PROFILES)), default="smoke", help="Defaults that single options override.", show_default=True)
@sweep_options
@store_options
def sweep(profile: str, tracking_uri: str | None, experiment: str | None, **given: str | None) -> None:
    """Inject directions at many layers and strengths, generate, score, and log everything as one MLflow run.

    In brackets: the default, and what the profiles set instead.
    """
    from emo_mlflow.session import run_sweep_session

    run_sweep_session(profile, given, tracking_uri, experiment, click.echo)

"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from emo_mlflow.settings.declared import Group, Parameter
from emo_mlflow.settings.parsing import Choice
from emo_mlflow.settings.profiles import DEFAULT, PROFILES

STORE_OPTIONS = (
    click.option(
        "--tracking-uri", default=None, help="MLflow tracking store; default: MLFLOW_TRACKING_URI or ./mlflow.db."
    ),
    click.option("--experiment", default=None, help="MLflow experiment; default: the active one."),
)


Command = Callable[..., Any]
TITLES: dict[Group, str] = {
    "what": "What is measured", "where": "Where it is injected", "how much": "How much", "scoring": "Scoring",
    "running": "Running", "logging": "Logging",
}  # fmt: skip


class GroupedOption(click.Option):
    """An option that is listed under a group."""

    def __init__(self, *args: Any, group: Group, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


class GroupedCommand(click.Command):
    """A command whose options are listed by group."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes a section per group, and one of what is left."""
        sections: dict[str, list[tuple[str, str]]] = {title: [] for title in (*TITLES.values(), "Other options")}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is not None:
                title = TITLES[parameter.group] if isinstance(parameter, GroupedOption) else "Other options"
                sections[title].append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def _once(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> str | None:
    """What was given, which may be given once: of two profiles, the one that is dropped would have set what the other does not."""
    if len(values) > 1:
        raise click.UsageError(f"{parameter.opts[0]} is given {len(values)} times ({', '.join(values)}): give it once")
    return values[0] if values else None


def parameter_options(
    table: Mapping[str, Parameter], profiles: Mapping[str, Mapping[str, str]] | None = None
) -> Callable[[Command], Command]:
    """Adds an option per parameter; an empty text is as good as none, so that MLproject can pass them all on."""

    def add(command: Command) -> Command:
        for name, parameter in reversed(list(table.items())):
            by_profile = [f"{p}: {values[name]}" for p, values in (profiles or {}).items() if name in values]
            default = "; ".join([*([parameter.default] if parameter.default else []), *by_profile])
            text = parameter.help + (f"  [{default}]" if default else "")
            shown = "|".join(parameter.parse.values) if isinstance(parameter.parse, Choice) else None
            option = click.option(f"--{name.replace('_', '-')}", name, help=text, metavar=shown, cls=GroupedOption, group=parameter.group)
            command = option(command)
        return command

    return add


def profile_option(command: Command) -> Command:
    """Adds the profile that single parameters override."""
    text = f"Defaults that single options override: {', '.join(PROFILES)}."
    return click.option("--profile", multiple=True, callback=_once, cls=GroupedOption, group="what", help=f"{text}  [{DEFAULT}]")(command)


def store_options(command: Command) -> Command:
    """Adds where MLflow keeps its runs."""
    for option in reversed(STORE_OPTIONS):
        command = option(command)
    return command

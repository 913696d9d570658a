"""The `emo-mlflow` command: options to settings to work. Every rule lives in the modules that it calls."""

from __future__ import annotations

import errno
import sys
from typing import Any

import click

from emo_mlflow import __version__
from emo_mlflow.cli.options import GroupedCommand, parameter_options, profile_option, store_options
from emo_mlflow.cli.tools import COMMANDS
from emo_mlflow.commands.asked import begin
from emo_mlflow.common.names import HALF
from emo_mlflow.common.termination import interruptible
from emo_mlflow.errors import UserError, reason_of
from emo_mlflow.settings.profiles import DEFAULT, OF_HEADS, PROFILES
from emo_mlflow.settings.tables import ALIGN, COMPARE, HEADS, PARAMETERS, STEER, STUDY, VECTORS

SUMMARY = 70  # characters of a command's first sentence, at most
SECTIONS = {
    "Experiments": ("study", "sweep", "heads", "steer"),
    "Reading them": ("compare", "label", "agree"),
    "Directions": ("vectors", "align", "import-vectors", "export-vectors"),
    "Scorers": ("export", "train-scorer"),
    "Runs": ("upload", "log-model", "export-legacy"),
    "This machine": ("doctor",),
}
STORES = ("mlflow", "sqlalchemy", "alembic")  # whose errors are about the store: its address, its tables, its answers


class Group(click.Group):
    """Prints a user's mistake, or what the system refuses, as one line, and exits with 2; an interrupt exits with 130."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuses words that are no text: they would be written into reports, hours later."""
        for word in args:
            if HALF.search(word):
                raise click.UsageError(f"{word.encode(errors='replace').decode()!r} is not UTF-8")
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands by what they are for."""
        for title, names in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(SUMMARY)) for name in names])

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        try:
            with interruptible():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            sys.exit(130)
        except Exception as error:
            if (text := plainly(error)) is None:
                raise
            click.echo(f"Error: {text}", err=True)
            sys.exit(2)


def plainly(error: Exception) -> str | None:
    """One line for a person's mistake, for what the system refuses, and for what the tracking store says; None for a fault of the program."""
    if isinstance(error, UserError):
        return str(error)
    line = reason_of(error, 1000)
    if isinstance(error, OSError) and error.errno != errno.EPIPE:
        return line
    return f"the tracking store: {line}" if type(error).__module__.split(".")[0] in STORES else None


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__)
def main() -> None:
    """Inject emotion directions into a language model as it writes, and measure what changes.

    `study` answers in one run; `sweep` maps layers and strengths; `compare` tests finished sweeps. All of it is logged to MLflow.
    """


@main.command(cls=GroupedCommand)
@profile_option
@parameter_options(PARAMETERS, PROFILES)
@store_options
def sweep(profile: str | None, tracking_uri: str | None, experiment: str | None, **given: str | None) -> None:
    """Steer at many layers and strengths, score the texts, log it all.

    In brackets: the default, and what the profiles set instead.
    """
    begin("Sweep", given, tracking_uri, click.echo)
    from emo_mlflow.commands.sweep import run_sweep_session

    run_sweep_session(profile or DEFAULT, given, tracking_uri, experiment, click.echo)


@main.command(cls=GroupedCommand)
@parameter_options(STUDY)
@store_options
def study(tracking_uri: str | None, experiment: str | None, **given: str | None) -> None:
    """Answer: does a direction steer, is it specific, at what price?

    For each emotion, in one run. The design is fixed before the first steered text. In brackets: the default.
    """
    begin("Study", given, tracking_uri, click.echo)
    from emo_mlflow.commands.study import run_study_command

    run_study_command(given, tracking_uri, experiment, click.echo)


@main.command()
@click.argument("source", metavar="RUN_ID_OR_FOLDER")
@click.option("--tracking-uri", default=None, help="MLflow tracking store; default: the one that the run was opened in.")
def upload(source: str, tracking_uri: str | None) -> None:
    """Log a finished sweep whose tracking server was away."""
    from emo_mlflow.commands.upload import run_upload_session

    run_upload_session(source, tracking_uri, click.echo)


@main.command(cls=GroupedCommand)
@parameter_options(VECTORS)
@store_options
def vectors(tracking_uri: str | None, experiment: str | None, **given: str | None) -> None:
    """Fit directions at each layer, judge them on other texts.

    Subspaces too. `sweep --directions RUN_ID` injects the directions. In brackets: the default.
    """
    begin("Vectors", given, tracking_uri, click.echo)
    from emo_mlflow.commands.vectors import TASK

    TASK.run(given, tracking_uri, experiment, click.echo)


@main.command(cls=GroupedCommand)
@parameter_options(ALIGN)
@store_options
def align(tracking_uri: str | None, experiment: str | None, **given: str | None) -> None:
    """Map one model's residual space to another's.

    Their emotion subspaces are compared, and directions are carried over.
    `sweep --model MODEL_B --directions RUN_ID` injects the directions that were carried over. In brackets: the default.
    """
    begin("Align", given, tracking_uri, click.echo)
    from emo_mlflow.commands.align import TASK

    TASK.run(given, tracking_uri, experiment, click.echo)


@main.command(cls=GroupedCommand)
@profile_option
@parameter_options(HEADS, OF_HEADS)
@store_options
def heads(profile: str | None, tracking_uri: str | None, experiment: str | None, **given: str | None) -> None:
    """Rank attention heads by what they write, then replace them.

    They are ranked by what they write along each emotion's direction, and replaced while the model writes.
    In brackets: the default, and what the profiles set instead.
    """
    begin("Heads", given, tracking_uri, click.echo)
    from emo_mlflow.commands.sweep import run_sweep_session
    from emo_mlflow.settings.sweep import make_head_config

    run_sweep_session(profile or DEFAULT, given, tracking_uri, experiment, click.echo, make_head_config)


@main.command(cls=GroupedCommand)
@parameter_options(COMPARE)
@store_options
def compare(tracking_uri: str | None, experiment: str | None, **given: str | None) -> None:
    """Test the effects of finished sweeps, and compare models.

    Intervals, corrected p-values, specificity and dose.
    In brackets: the default.
    """
    from emo_mlflow.commands.compare import run_comparison
    from emo_mlflow.commands.task import settings_from
    from emo_mlflow.settings.compare import CompareSettings

    settings = settings_from(CompareSettings, given, tracking_uri)
    run_comparison(settings, tracking_uri, experiment, click.echo)


@main.command(cls=GroupedCommand)
@click.argument("prompts", nargs=-1)
@click.option("--stream", "word_by_word", is_flag=True, help="Write the steered text as it comes.")
@parameter_options(STEER)
@click.option("--tracking-uri", default=None, help="MLflow tracking store of --run-id or --directions; default: MLFLOW_TRACKING_URI or ./mlflow.db.")
def steer(prompts: tuple[str, ...], word_by_word: bool, tracking_uri: str | None, **given: str | None) -> None:
    """Continue PROMPTS with and without a direction, side by side.

    Nothing is logged. `emo-mlflow steer "My brother called" --emotion gratitude --layer 12 --alpha 2`. In brackets: the default.
    """
    from emo_mlflow.commands.steer import run_steer

    run_steer(given, prompts, word_by_word, tracking_uri, click.echo)


@main.command("log-model")
@click.option("--run-id", default=None, help="A finished sweep.")
@click.option("--emotion", default=None, help="Whose direction; may be left out where the sweep has one.")
@click.option("--layer", type=click.IntRange(0), default=None, help="Default: the best condition's.")
@click.option("--alpha", type=float, default=None, help="Default: the best condition's; each call can set another.")
@click.option("--scope", type=click.Choice(["window", "generated", "all"]), default=None, help="Default: the sweep's.")
@click.option("--patch-window", type=click.IntRange(1), default=None, help="Of scope window. Default: the sweep's.")
@click.option("--comparison", default=None, help="A comparison's run; takes the condition that it recommends.")
@click.option("--include-weights", is_flag=True, help="Copy the base model into the logged one; default: by reference.")
@click.option("--register", default=None, help="Register the model under this name.")
@store_options
def log_model_command(
    run_id: str | None,
    comparison: str | None,
    include_weights: bool,
    register: str | None,
    tracking_uri: str | None,
    experiment: str | None,
    **wanted: Any,
) -> None:
    """Log a condition of a sweep as an MLflow model.

    It continues prompts under that condition, loaded or served over HTTP.
    Without --layer and --alpha it is the condition that raises the emotion's own label most without breaking the text. A call may set
    alpha, max_new_tokens, temperature and seed; MLflow drops other parameters, with a warning.
    """
    from emo_mlflow.serving.condition_choice import Wanted
    from emo_mlflow.serving.log_model import LogRequest, log_model

    request = LogRequest(run_id, Wanted(**wanted), comparison, include_weights, register)
    log_model(request, tracking_uri, experiment, click.echo)


@main.command("doctor")
@click.option("--tracking-uri", default=None, help="MLflow tracking store; default: MLFLOW_TRACKING_URI or ./mlflow.db.")
def doctor_command(tracking_uri: str | None) -> None:
    """Say what works on this machine, and what to do if not.

    Exits with 1 if a default sweep cannot run.
    """
    from emo_mlflow.commands.diagnosis import report
    from emo_mlflow.commands.doctor import all_checks

    sys.exit(report(all_checks(tracking_uri), click.echo))


for tool in COMMANDS:
    main.add_command(tool)


if __name__ == "__main__":
    main()

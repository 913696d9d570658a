"""The commands as functions: the same parameters and checks, and what the run has, to look at in a notebook."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from emo_mlflow.commands.align import TASK as ALIGN
from emo_mlflow.commands.asked import begin
from emo_mlflow.commands.study import run_study_command
from emo_mlflow.commands.sweep import run_sweep_session
from emo_mlflow.commands.vectors import TASK as VECTORS
from emo_mlflow.errors import UserError
from emo_mlflow.settings.declared import as_texts
from emo_mlflow.settings.profiles import DEFAULT
from emo_mlflow.settings.sweep import make_config, make_head_config
from emo_mlflow.tracking.logged_run import LoggedRun, logged_run
from emo_mlflow.tracking.reading import Sweep, load_sweep
from emo_mlflow.types import Say


def sweep(profile: str = DEFAULT, *, tracking_uri: str | None = None, experiment: str | None = None, say: Say = print, **settings: Any) -> Sweep:
    """Injects directions at many layers and strengths, generates, scores, and logs everything as one MLflow run.

        found = emo_mlflow.sweep(model="smollm2-135m", emotions="gratitude", layers=[12, 18], alphas=2, max_samples=8)
        found                        # in a notebook: what it found
        found.effects                # a DataFrame per table
        found.figure("layers")

    Args:
        profile: smoke, seed or baseline: defaults that single settings override.
        tracking_uri: MLflow's store; the active one if not given.
        experiment: MLflow's experiment; the active one if not given.
        say: is told each line that the command would print.
        settings: the options of `emo-mlflow sweep`, with their values or as texts.

    Raises:
        UserError: for anything that the caller can mend.
    """
    given = _begun("Sweep", settings, tracking_uri, say)
    return load_sweep(run_sweep_session(profile, given, tracking_uri, experiment, say, make_config), tracking_uri)


def heads(profile: str = DEFAULT, *, tracking_uri: str | None = None, experiment: str | None = None, say: Say = print, **settings: Any) -> Sweep:
    """Ranks attention heads by what they write along each direction, then replaces them while the model writes; arguments as of `sweep`.

    Raises:
        UserError: for anything that the caller can mend.
    """
    given = _begun("Heads", settings, tracking_uri, say)
    return load_sweep(run_sweep_session(profile, given, tracking_uri, experiment, say, make_head_config), tracking_uri)


def study(*, tracking_uri: str | None = None, experiment: str | None = None, say: Say = print, **settings: Any) -> LoggedRun:
    """Answers for each emotion whether its direction steers, and whether that is specific to it; other arguments as of `sweep`.

        found = emo_mlflow.study(model="smollm2-135m", budget="5min")
        found.answer                 # a sentence per emotion
        found.table("verdicts")

    Raises:
        UserError: for anything that the caller can mend.
    """
    return _logged("Study", run_study_command, settings, tracking_uri, experiment, say)


def vectors(*, tracking_uri: str | None = None, experiment: str | None = None, say: Say = print, **settings: Any) -> LoggedRun:
    """Fits directions and subspaces at every layer, and judges them on held-out texts; other arguments as of `sweep`.

        found = emo_mlflow.vectors(model="smollm2-135m")
        found.table("readout")       # accuracy by layer, emotion and method
        found.figure("readout")

    Raises:
        UserError: for anything that the caller can mend.
    """
    return _logged("Vectors", VECTORS.run, settings, tracking_uri, experiment, say)


def align(*, tracking_uri: str | None = None, experiment: str | None = None, say: Say = print, **settings: Any) -> LoggedRun:
    """Maps one model's residual space to another's, and carries directions over; other arguments as of `sweep`.

    Raises:
        UserError: for anything that the caller can mend.
    """
    return _logged("Align", ALIGN.run, settings, tracking_uri, experiment, say)


def _logged(
    what: str, run: Callable[..., str], settings: dict[str, Any], tracking_uri: str | None, experiment: str | None, say: Say
) -> LoggedRun:
    return logged_run(run(_begun(what, settings, tracking_uri, say), tracking_uri, experiment, say), tracking_uri)


def _begun(what: str, settings: dict[str, Any], tracking_uri: str | None, say: Say) -> dict[str, str | None]:
    if not isinstance(tracking_uri, str | None):
        raise UserError(f"tracking_uri={tracking_uri!r} is no text: give an address such as 'sqlite:///mlflow.db'")
    given = as_texts(settings)
    begin(what, given, tracking_uri, say)
    return given

"""One comparison from run ids to a finished MLflow run: finds the sweeps or studies, checks first, compares, writes and logs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow.compute as pc

from emo_mlflow.common import progress
from emo_mlflow.common.columns import rows_of
from emo_mlflow.comparison import Comparison, Source, compare_sweeps
from emo_mlflow.comparison.families import WHOLE, parse_family
from emo_mlflow.errors import UserError
from emo_mlflow.report.across_models import across_lines, write_across_models
from emo_mlflow.report.comparison import check_language, write_comparison
from emo_mlflow.report.comparison_answer import answer
from emo_mlflow.report.texts import texts
from emo_mlflow.settings.compare import CompareSettings
from emo_mlflow.settings.declared import read
from emo_mlflow.settings.tables import COMPARE
from emo_mlflow.studying.across_models import AcrossModels, across_models
from emo_mlflow.sweeping.files import check_cells
from emo_mlflow.tracking.comparison import ComparisonRun
from emo_mlflow.tracking.reading import Sweep, find_sweeps, load_compared
from emo_mlflow.tracking.study_reading import load_study, studies_among
from emo_mlflow.types import N_BOOTSTRAP, Say


def compare(
    run_ids: Sequence[str] | str,
    *,
    family: str = WHOLE,
    tracking_uri: str | None = None,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
) -> Comparison:
    """Compares finished sweeps; nothing is logged.

    Args:
        run_ids: of sweeps, and of alignments for k-selection; a sequence, or a text with commas.
        family: `comparison` (own labels, and other scores), or columns that divide the tests into families, such as `own,model`.

    Returns:
        the tables by name in `.tables`, what restricts them in `.notes`, numbers for a run in `.metrics`.

    Raises:
        UserError: for a run that is missing, deleted, unfinished, or no sweep; and for sweeps that cannot be compared.
    """
    parse_family(family)
    ids = read({"runs": COMPARE["runs"]}, {"runs": run_ids})["runs"] if isinstance(run_ids, str) else tuple(run_ids)
    sweeps, alignments = load_compared(ids, tracking_uri)
    return compare_sweeps([source_of(sweep) for sweep in sweeps], family, alignments, n_bootstrap, seed)


def run_comparison(settings: CompareSettings, tracking_uri: str | None, log_to: str | None, say: Say) -> str:
    """Compares, writes the report, and logs everything as one MLflow run in experiment `log_to`; returns its id.

    Raises:
        UserError: as `compare`; and for a language without words or font, before anything is read.
    """
    with progress.bars(), ComparisonRun.open(tracking_uri, log_to) as run:
        check_language(settings.language)
        ids = settings.runs or newest_sweeps(
            run.experiment_name(settings.from_experiment or log_to), settings.filter, tracking_uri, settings.phase
        )
        say(f"Comparing  {len(ids)} runs")
        if studies_among(ids, tracking_uri):
            _over_studies(settings, ids, tracking_uri, run, say)
            return run.run_id
        comparison = compare(
            ids, family=settings.family, tracking_uri=tracking_uri, n_bootstrap=settings.n_bootstrap, seed=settings.seed
        )
        shown = {name: getattr(settings, name) for name in ("family", "language", "n_bootstrap", "seed")}
        with tempfile.TemporaryDirectory() as folder:
            write_comparison(comparison, Path(folder), settings.language)
            run.log(comparison, Path(folder), shown)
    for line in summary_lines(comparison, settings.language):
        say(line)
    say(f"Report     {run.artifact_uri}/report.html")
    return run.run_id


def compare_studies(run_ids: Sequence[str], *, tracking_uri: str | None = None) -> AcrossModels:
    """What holds in all of several models, from a finished study of each; nothing is logged.

    Returns:
        the tables `answers`, `rungs` and `together` in `.tables`, what restricts them in `.notes`, numbers for a run in `.metrics`.

    Raises:
        UserError: for a run that is missing, deleted, unfinished, or no study; for fewer than two studies, two of one model, and studies that
            did not measure the same.
    """
    return across_models([load_study(run_id, tracking_uri) for run_id in run_ids])


def _over_studies(settings: CompareSettings, ids: Sequence[str], tracking_uri: str | None, run: ComparisonRun, say: Say) -> None:
    usual = CompareSettings(**read(COMPARE, {}))
    for name in ("family", "language", "n_bootstrap", "seed"):
        if getattr(settings, name) != getattr(usual, name):
            raise UserError(f"{name}={getattr(settings, name)} is for comparisons of sweeps, and these are studies: leave it out")
    found = compare_studies(ids, tracking_uri=tracking_uri)
    with tempfile.TemporaryDirectory() as folder:
        write_across_models(found, Path(folder))
        run.log_studies(found, Path(folder))
    for line in across_lines(found):
        say(line)
    say(f"Report     {run.artifact_uri}/report.html")


def newest_sweeps(
    experiment: str, filter_string: str | None, tracking_uri: str | None, phase: str = "residual"
) -> tuple[str, ...]:
    """The newest finished sweep, or study, of each model in an experiment.

    Raises:
        UserError: if there is none.
    """
    found = find_sweeps(experiment=experiment, filter=filter_string, tracking_uri=tracking_uri, phase=phase)
    newest = found.drop_duplicates("model")
    if not len(newest):
        fits = " that fits the filter" if filter_string else ""
        what = {"residual": "sweep", "head": "sweep over heads", "study": "study"}[phase]
        raise UserError(f"experiment {experiment!r} has no finished {what}{fits}: run one first, or give runs=ID,ID")
    return tuple(newest["run_id"])


def source_of(sweep: Sweep) -> Source:
    """A sweep as a comparison reads it."""

    def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
        completions, scores = sweep.read("completions"), sweep.read("scores")
        check_cells(sweep.prompts, sweep.conditions, completions, scores)
        return completions, scores

    def texts_of(condition_ids: Sequence[str]) -> pd.DataFrame:
        wanted = pc.field("condition_id").isin(list(condition_ids)) & pc.field("failure").is_null()
        return rows_of(sweep.scan("completions"), wanted, ["condition_id", "prompt_id", "completion"])

    return Source(
        run_id=sweep.run_id,
        label=str(sweep.config["model"]),
        config=sweep.config,
        facts=sweep.facts,
        prompts=sweep.prompts,
        conditions=sweep.conditions,
        tables=tables,
        texts=texts_of,
        seconds=sweep.seconds,
    )


def summary_lines(comparison: Comparison, language: str) -> list[str]:
    """The answer for the terminal."""
    return ["", *answer(comparison, texts(language, comparison.phase)), ""]

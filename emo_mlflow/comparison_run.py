"""One comparison from run ids to a finished MLflow run: finds the sweeps, checks first, compares, writes and logs."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param
from mlflow.exceptions import MlflowException

from emo_mlflow.comparison import Comparison, Source, compare_sweeps
from emo_mlflow.comparison.families import WHOLE, parse_family
from emo_mlflow.errors import UserError
from emo_mlflow.report.comparison import check_language, write_comparison
from emo_mlflow.report.comparison_text import answer
from emo_mlflow.report.texts import texts
from emo_mlflow.run_context import KIND, experiment_name, run_context
from emo_mlflow.sweep_files import check_cells
from emo_mlflow.sweeps import Sweep, find_sweeps, load_sweep

Say = Callable[[str], None]

MILLISECONDS = 1000
OVERLAP = "overlap.parquet"


@dataclass(frozen=True)
class Request:
    """What to compare and how.

    Attributes:
        runs: ids of sweeps; of alignments too, which k-selection reads. Empty: by experiment and filter.
        experiment: whose newest finished sweep of each model is taken; None for MLflow's active one.
        phase: of those sweeps: residual for sweeps of directions, head for sweeps over heads.
        filter: a further MLflow filter on the sweeps to take.
        family: `comparison`, or columns that divide the tests into families.
        language: of the report, en or ja.
    """

    runs: tuple[str, ...] = ()
    experiment: str | None = None
    phase: str = "residual"
    filter: str | None = None
    family: str = WHOLE
    language: str = "en"
    n_bootstrap: int = 2000
    seed: int = 0


def compare(
    run_ids: Sequence[str] | str,
    *,
    family: str = WHOLE,
    tracking_uri: str | None = None,
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compares finished sweeps; nothing is logged.

    Args:
        run_ids: of sweeps, and of alignments for k-selection; a sequence, or a text with commas.
        family: `comparison`, or columns that divide the tests into families, such as `model,metric`.

    Returns:
        the tables by name in `.tables`, what restricts them in `.notes`, numbers for a run in `.metrics`.

    Raises:
        UserError: for a run that is missing, deleted, unfinished, or no sweep; and for sweeps that cannot be compared.
    """
    parse_family(family)
    ids = split_ids(run_ids) if isinstance(run_ids, str) else tuple(run_ids)
    sweeps, alignments = _load(ids, tracking_uri)
    return compare_sweeps([source_of(sweep) for sweep in sweeps], family, alignments, n_bootstrap, seed)


def run_comparison(request: Request, tracking_uri: str | None, log_to: str | None, say: Say) -> str:
    """Compares, writes the report, and logs everything as one MLflow run in experiment `log_to`; returns its id.

    Raises:
        UserError: as `compare`; and for a language without words or font, before anything is read.
    """
    client = MlflowClient(tracking_uri)
    with run_context(client, "comparison", "comparison", experiment=log_to) as run_id:
        check_language(request.language)
        ids = request.runs or newest_sweeps(
            experiment_name(client, request.experiment), request.filter, tracking_uri, request.phase
        )
        comparison = compare(
            ids, family=request.family, tracking_uri=tracking_uri, n_bootstrap=request.n_bootstrap, seed=request.seed
        )
        with tempfile.TemporaryDirectory() as folder:
            write_comparison(comparison, Path(folder), request.language)
            client.log_artifacts(run_id, folder)
        _log(client, run_id, comparison, request)
    for line in summary_lines(comparison, request.language):
        say(line)
    say(f"Report     {client.get_run(run_id).info.artifact_uri}/report.html")
    return run_id


def split_ids(text: str) -> tuple[str, ...]:
    """Run ids from a text with commas.

    Raises:
        UserError: for an empty item.
    """
    ids = tuple(part.strip() for part in text.split(","))
    if not all(ids):
        raise UserError(f"runs={text!r} has an empty item: separate run ids with single commas")
    return ids


def newest_sweeps(
    experiment: str, filter_string: str | None, tracking_uri: str | None, phase: str = "residual"
) -> tuple[str, ...]:
    """The newest finished sweep of each model in an experiment.

    Raises:
        UserError: if there is none.
    """
    found = find_sweeps(experiment=experiment, filter=filter_string, tracking_uri=tracking_uri, phase=phase)
    newest = found.drop_duplicates("model")
    if not len(newest):
        fits = " that fits the filter" if filter_string else ""
        what = "sweep over heads" if phase == "head" else "sweep"
        raise UserError(f"experiment {experiment!r} has no finished {what}{fits}: run one first, or give runs=ID,ID")
    return tuple(newest["run_id"])


def source_of(sweep: Sweep) -> Source:
    """A sweep as a comparison reads it."""
    check_cells(sweep.prompts, sweep.conditions, sweep.completions, sweep.scores)
    info = sweep.run.info
    end = info.end_time
    return Source(
        run_id=sweep.run_id,
        label=str(sweep.config["model"]),
        config=sweep.config,
        facts=sweep.facts,
        prompts=sweep.prompts,
        conditions=sweep.conditions,
        completions=sweep.completions,
        scores=sweep.scores,
        seconds=float("nan") if end is None else (end - info.start_time) / MILLISECONDS,
    )


def _load(ids: Sequence[str], tracking_uri: str | None) -> tuple[list[Sweep], list[pd.DataFrame]]:
    """The sweeps among the runs, and the overlap tables of the alignments."""
    client = MlflowClient(tracking_uri)
    sweeps, alignments = [], []
    for run_id in ids:
        if _is_alignment(client, run_id):
            path = download_artifacts(run_id=run_id, artifact_path=OVERLAP, tracking_uri=tracking_uri)
            alignments.append(pd.read_parquet(path))
        else:
            sweeps.append(load_sweep(run_id, tracking_uri))
    return sweeps, alignments


def _is_alignment(client: MlflowClient, run_id: str) -> bool:
    try:
        return bool(client.get_run(run_id).data.tags.get(KIND) == "alignment")
    except MlflowException:
        return False  # load_sweep says what is wrong


def _log(client: MlflowClient, run_id: str, comparison: Comparison, request: Request) -> None:
    """Settings as params, numbers as metrics; tags and inputs that link the sweeps."""
    settings: Mapping[str, object] = {
        "compared.family": request.family,
        "compared.phase": comparison.phase,
        "compared.language": request.language,
        "compared.n_bootstrap": request.n_bootstrap,
        "compared.seed": request.seed,
    }
    now = int(time.time() * MILLISECONDS)
    metrics = [Metric(metric_name(k), v, now, 0) for k, v in comparison.metrics.items() if np.isfinite(v)]
    client.log_batch(run_id, metrics=metrics, params=[Param(k, str(v)) for k, v in settings.items()])
    client.set_tag(run_id, "emo.sweeps", ",".join(source.run_id for source in comparison.sources))
    inputs = [
        DatasetInput(
            Dataset(
                name=source.label[:500],
                digest=source.run_id[:32],
                source_type="mlflow_run",
                source=json.dumps({"run_id": source.run_id, "uri": f"runs:/{source.run_id}"}),
            ),
            [InputTag("mlflow.data.context", "sweep")],
        )
        for source in comparison.sources
    ]
    client.log_inputs(run_id, inputs)


def metric_name(name: str) -> str:
    """A name that MLflow takes: a model's own may have other characters."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "/_.- :") else "_" for c in name)[:250]


def summary_lines(comparison: Comparison, language: str) -> list[str]:
    """The answer for the terminal."""
    return ["", *answer(comparison, texts(language, comparison.phase)), ""]

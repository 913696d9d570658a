"""`emo-mlflow agree`: readers' labels of a sweep's texts back into MLflow, with what they say of readers, scores and effects."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from math import isnan
from pathlib import Path

import pandas as pd

from emo_mlflow.commands.label import asked_of
from emo_mlflow.common.csv_files import write_csv
from emo_mlflow.comparison.label_effects import agreement_rows, effect_table, mean_labels, reader_table
from emo_mlflow.comparison.label_sheet import Draw, all_cells, drawn, make_sheet, open_sheet, read_labels
from emo_mlflow.errors import UserError
from emo_mlflow.scoring.agreement import Agreement
from emo_mlflow.scoring.questions import Question
from emo_mlflow.sweeping.files import check_cells
from emo_mlflow.sweeping.schemas import FLUENCY, KEYS
from emo_mlflow.tracking.agreement import log_agreement
from emo_mlflow.tracking.reading import Sweep, load_sweep
from emo_mlflow.tracking.store import check_store
from emo_mlflow.tracking.values import Values, metric_name
from emo_mlflow.types import Say

MOST_READERS = 2


def run_agreement(sheets: Sequence[Path], run_id: str, tracking_uri: str | None, say: Say) -> str:
    """Reads one or two readers' sheets and logs what they say as a child of the sweep's run; returns the child's id.

    Raises:
        UserError: if the run is no finished sweep or its texts are gone; if a sheet is not whole, is of other texts, or has answers that are none.
    """
    if len(sheets) > MOST_READERS:
        raise UserError(f"{len(sheets)} sheets were given: give one reader's or two readers'")
    check_store(tracking_uri)
    opened = [open_sheet(path) for path in sheets]
    draw = opened[0][1]
    for path, (_, other) in zip(sheets, opened, strict=True):
        if other.run_id != run_id:
            raise UserError(f"{path} has texts of run {other.run_id}, not of {run_id}: give --run-id {other.run_id}, or that run's sheet")
        if other != draw:
            raise UserError(f"{path} and {sheets[0]} are of different draws: two readers label the same sheet")
    sweep = load_sweep(run_id, tracking_uri)
    asked = asked_of(sweep)
    cells = scored_cells(sweep)
    labelled = drawn(cells, draw)
    sheet = make_sheet(labelled, draw, asked)
    readers = [read_labels(table, path, sheet, asked) for path, (table, _) in zip(sheets, opened, strict=True)]
    return _log(sweep, draw, readers, cells, labelled, asked, tracking_uri, say)


def scored_cells(sweep: Sweep) -> pd.DataFrame:
    """Every cell that has a text, with its arm, its scores and its fluency; no score where the scorer gave none."""
    check_cells(sweep.prompts, sweep.conditions, sweep.completions, sweep.scores)
    fluency = sweep.completions[[*KEYS, *FLUENCY]].rename(columns=FLUENCY)
    cells = all_cells(sweep.prompts, sweep.conditions, sweep.completions)
    return cells.merge(fluency, on=KEYS).merge(sweep.scores, on=KEYS, how="left")


def _log(
    sweep: Sweep,
    draw: Draw,
    readers: Sequence[pd.DataFrame],
    cells: pd.DataFrame,
    labelled: pd.DataFrame,
    asked: Sequence[Question],
    tracking_uri: str | None,
    say: Say,
) -> str:
    labels = mean_labels(readers, asked)
    kappa, found = reader_table(readers), agreement_rows(labelled, labels, asked)
    effects = effect_table(cells, labelled, labels, asked)
    lines = list(summary(kappa, found, effects, len(readers), len(labels)))
    facts = {"labels.run": draw.run_id, "labels.n": draw.n, "labels.seed": draw.seed, "labels.readers": len(readers), "labels.texts": len(labels)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_csv(kappa, folder / "readers.csv")
        write_csv(pd.DataFrame([asdict(row) for row in found]), folder / "agreement.csv")
        write_csv(effects, folder / "corrected_effects.csv")
        for i, reader in enumerate(readers):
            write_csv(reader.reset_index(), folder / f"labels_{'ab'[i]}.csv")
        child = log_agreement(sweep.run, folder, facts, tuple(metrics(kappa, found, effects)), lines, tracking_uri)
    for line in lines:
        say(line)
    say(f"Run        {child}, a child of {sweep.run_id}")
    return child


def metrics(kappa: pd.DataFrame, found: Sequence[Agreement], effects: pd.DataFrame) -> Iterator[tuple[str, float, int]]:
    """`kappa.QUESTION`, `auc.METRIC` or `spearman.METRIC`, and of each arm `effect.plain.ARM.METRIC` and `effect.corrected.ARM.METRIC`, with ends."""
    for row in kappa.to_dict("records"):
        yield f"kappa.{row['question']}", float(row["kappa"]), 0
    for item in found:
        name = f"{item.measure}.{item.metric}"
        values: Values = ((name, item.value, 0), (f"{name}.low", item.low, 0), (f"{name}.high", item.high, 0))
        yield from ((metric_name(key), value, step) for key, value, step in values)
    for row in effects[effects["condition_id"].isna()].to_dict("records"):
        for kind in ("plain", "corrected"):
            name = metric_name(f"effect.{kind}.{row['arm']}.{row['metric']}")
            yield from ((f"{name}{end.replace('_', '.')}", float(row[f"{kind}{end}"]), 0) for end in ("", "_low", "_high"))


def summary(kappa: pd.DataFrame, found: Sequence[Agreement], effects: pd.DataFrame, n_readers: int, n_texts: int) -> Iterator[str]:
    """The answer for the terminal."""
    yield ""
    if n_readers == 1:
        yield f"One reader, {n_texts} texts: how well readers agree is not known; a second reader's sheet beside the first says it"
    for row in kappa.to_dict("records"):
        yield f"Readers    {row['question']:<14} kappa {row['kappa']:.2f}, equal in {row['equal']:.0%} of {row['n']} texts"
    for item in found:
        hits = "" if item.positives is None else f", {item.positives} of {item.n} texts{' (too few to say)' if item.too_few else ''}"
        most = "" if item.at_most is None or isnan(item.at_most) else f", of {item.at_most:.2f} at most with these labels"
        yield f"Scorer     {item.question:<14} {item.metric}: {item.measure} {item.value:.2f} [{item.low:.2f}, {item.high:.2f}]{hits}{most}"
    arms = effects[effects["condition_id"].isna() & effects["arm"].str.startswith("emotion ")].to_dict("records")
    own = [row for row in arms if row["arm"] == f"emotion {row['question']}" or row["question"] == "fluency"]
    if own:
        yield ""
        yield "Mean effect of all conditions of an emotion, as the scores have it, and corrected by the labels"
    for row in own:
        corrected = f"{row['corrected']:+.3f} [{row['corrected_low']:+.3f}, {row['corrected_high']:+.3f}]"
        if isnan(row["corrected"]):
            corrected = f"too few labelled texts ({row['n_labelled']} and {row['n_labelled_baseline']} of the baseline)"
        yield f"{row['arm']:<22} {row['metric']:<26} {row['plain']:+.3f} [{row['plain_low']:+.3f}, {row['plain_high']:+.3f}]   {corrected}"
    yield ""

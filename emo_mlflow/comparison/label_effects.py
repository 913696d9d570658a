"""What readers' labels of some texts say: of the readers, of the scores, and of a sweep's effects, corrected by them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from emo_mlflow.comparison.label_sheet import BASELINE, ID
from emo_mlflow.scoring.agreement import ALL, Agreement
from emo_mlflow.scoring.questions import Question
from emo_mlflow.statistics.agreement import (
    auc,
    calibration_error,
    clustered_interval,
    largest_spearman,
    spearman,
    weighted_kappa,
)
from emo_mlflow.statistics.moments import Floats
from emo_mlflow.statistics.prediction_powered import LEAST_LABELLED, Errors, corrected_difference, plain_difference

READERS = ("question", "n", "equal", "kappa")
EFFECTS = (
    "arm", "condition_id", "metric", "question", "n_prompts", "n_labelled", "n_labelled_baseline",
    "plain", "plain_low", "plain_high", "corrected", "corrected_low", "corrected_high",
)  # fmt: skip


def reader_table(readers: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """READERS: how well two readers agree, per question that both answered: share of equal answers, and quadratic-weighted kappa."""
    if len(readers) < 2:
        return pd.DataFrame(columns=list(READERS))
    first, second = readers
    both = [name for name in first if name in second]
    rows = [(name, len(first), float((first[name] == second[name]).mean()), weighted_kappa(first[name], second[name])) for name in both]
    return pd.DataFrame(rows, columns=list(READERS))


def mean_labels(readers: Sequence[pd.DataFrame], asked: Sequence[Question]) -> pd.DataFrame:
    """The readers' mean answer per text and question, ID as index; of those who answered it."""
    names = [question.name for question in asked if any(question.name in reader for reader in readers)]
    return pd.DataFrame({name: np.mean([reader[name] for reader in readers if name in reader], axis=0) for name in names}, readers[0].index)


def values_of(cells: pd.DataFrame, metric: str) -> Floats:
    """A metric of cells, or a difference `a - b` of two."""
    first, _, second = metric.partition(" - ")
    values = cells[first].to_numpy(float)
    return values - cells[second].to_numpy(float) if second else values


def agreement_rows(labelled: pd.DataFrame, labels: pd.DataFrame, asked: Sequence[Question]) -> list[Agreement]:
    """Each metric against the question that it should answer, over the sheet's texts.

    Args:
        labelled: the drawn cells with their ids and scores.
        labels: of `mean_labels`.
    """
    texts = labelled.drop_duplicates(ID)
    found = []
    for question, metric in _pairs(texts, labels, asked):
        score, said = values_of(texts, metric), question.on_scale(labels.loc[texts[ID], question.name].to_numpy(float))
        known = ~np.isnan(score)
        score, said, prompts = score[known], said[known], texts["prompt_id"].to_numpy()[known]
        found.append(_agreement(question, metric, score, said, prompts))
    return found


def _agreement(question: Question, metric: str, score: Floats, said: Floats, prompts: Any) -> Agreement:
    if not question.is_share:
        value = spearman(score, said)
        low, high = clustered_interval(lambda i: spearman(score[i], said[i]), prompts)
        return Agreement(metric, question.name, "spearman", ALL, len(score), value, low, high, at_most=largest_spearman(said))
    hits = said > 0
    low, high = clustered_interval(lambda i: auc(score[i], hits[i]), prompts)
    inside, outside = (float(score[part].mean()) if part.any() else float("nan") for part in (hits, ~hits))
    error = calibration_error(np.clip(score, 0, 1), hits)
    return Agreement(metric, question.name, "auc", ALL, len(score), auc(score, hits), low, high, int(hits.sum()), inside, outside, error)


def _pairs(table: pd.DataFrame, labels: pd.DataFrame, asked: Sequence[Question]) -> Iterator[tuple[Question, str]]:
    for question in asked:
        if question.name in labels:
            yield from ((question, metric) for metric in question.metrics(list(table.columns)))


def effect_table(cells: pd.DataFrame, labelled: pd.DataFrame, labels: pd.DataFrame, asked: Sequence[Question]) -> pd.DataFrame:
    """EFFECTS: the mean difference from the baseline of each arm, and of each condition with enough labelled texts, as the scores have it
    and corrected by the labels.

    Args:
        cells: all that have a text: KEYS, kind, arm, and a column per metric.
        labelled: the drawn ones, with their ids.
        labels: of `mean_labels`.
    """
    drawn = labelled.set_index("condition_id")[ID].groupby(level=0).size()
    groups: list[tuple[str, str | None]] = [(arm, None) for arm in dict.fromkeys(cells["arm"]) if arm != BASELINE]
    arms = cells.drop_duplicates("condition_id").set_index("condition_id")["arm"]
    groups += [(str(arms[i]), str(i)) for i in arms.index if arms[i] != BASELINE and drawn.get(i, 0) >= LEAST_LABELLED]
    rows = []
    for question, metric in _pairs(cells, labels, asked):
        score = cells.assign(value=values_of(cells, metric)).dropna(subset=["value"])
        said = labelled.assign(value=question.on_scale(labels.loc[labelled[ID], question.name].to_numpy(float)) - values_of(labelled, metric))
        for arm, condition in groups:
            rows.append((arm, condition, metric, question.name, *_effect(score, said.dropna(subset=["value"]), arm, condition)))
    return pd.DataFrame(rows, columns=list(EFFECTS))


def _effect(score: pd.DataFrame, said: pd.DataFrame, arm: str, condition: str | None) -> tuple[float, ...]:
    def parts(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
        patched = table[(table["arm"] == arm) if condition is None else (table["condition_id"] == condition)]
        return patched, table[table["arm"] == BASELINE]

    means = [part.groupby("prompt_id")["value"].mean() for part in parts(score)]
    differences = (means[0] - means[1]).dropna()
    place = {prompt: i for i, prompt in enumerate(differences.index)}
    errors = []
    for part in parts(said):
        own = part[part["prompt_id"].isin(differences.index)]
        errors.append(Errors(own["value"].to_numpy(float), own["prompt_id"].map(place).to_numpy(int)))
    values = differences.to_numpy(float)
    if not len(values):
        return (0, *(len(error.values) for error in errors), *[float("nan")] * 6)
    plain, corrected = plain_difference(values), corrected_difference(values, errors[0], errors[1])
    sizes = (len(values), len(errors[0].values), len(errors[1].values))
    return (*sizes, plain.mean, plain.low, plain.high, corrected.mean, corrected.low, corrected.high)

"""What finished studies of several models say together: in how many of them each emotion's direction does what, with known error rates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from emo_mlflow.common.names import first_spellings, one_line
from emo_mlflow.comparison.rows import records
from emo_mlflow.errors import UserError
from emo_mlflow.statistics.corrections import corrected
from emo_mlflow.statistics.moments import Floats
from emo_mlflow.studying.protocol import LEVEL

Holds = Literal["specific", "steers", "not shown"]

# What of a design an answer is about. Studies may differ in it, and then what holds in all models holds under all of these.
DESIGN = ("direction", "controls", "procedure", "scope", "patch_window", "site", "sequence_length", "temperature", "template", "system", "fit_on")
ANSWERS = [
    "emotion", "metric", "verdict", "layer", "alpha", "alpha_unit", "n", "effect", "low", "high", "p_baseline",
    "p_baseline_holm", "harmed", "p_all", "broken_steered", "broken_baseline",
]
RUNGS = ["emotion", "control", "draws", "reached", "p", "void", "broken", "draw_mean", "draw_low", "draw_high"]
DAMAGE = ["kl", "perplexity_ratio", "log_probability_change"]


@dataclass(frozen=True, eq=False)
class PastStudy:
    """One finished study, as it was logged.

    Attributes:
        model: its name; how tables and figures call the study.
        design: what design.json holds; `facts` and `config`: what config.json holds.
        verdicts, damage: its tables of these names.
        changed: whether its design was changed after it was begun.
    """

    run_id: str
    model: str
    design: Mapping[str, Any]
    config: Mapping[str, Any]
    facts: Mapping[str, Any]
    verdicts: pd.DataFrame
    damage: pd.DataFrame
    changed: bool = False

    @property
    def labels(self) -> dict[str, str]:
        """Each emotion's own label."""
        return {place["emotion"]: place["metric"] for place in self.design["places"]}


@dataclass(frozen=True, eq=False)
class AcrossModels:
    """Studies beside each other.

    Attributes:
        notes: what restricts what can be said of them together, in sentences.
        tables: `answers`, a row per emotion and model; `rungs`, a row per emotion, model and control; `together`, a row per emotion.
    """

    studies: tuple[PastStudy, ...]
    notes: tuple[str, ...]
    tables: Mapping[str, pd.DataFrame]

    @property
    def metrics(self) -> dict[str, float]:
        """Numbers for a run: `verdict.<emotion>.specific`, `.steers`, `.models`, `.p`, `.lowest`."""
        found: dict[str, float] = {}
        for row in records(self.tables["together"]):
            names = {"specific": "specific", "steers": "steers", "models": "models", "p_all": "p", "lowest": "lowest"}
            found |= {f"verdict.{row['emotion']}.{name}": float(row[column]) for column, name in names.items()}
        return found


def across_models(studies: Sequence[PastStudy]) -> AcrossModels:
    """Studies of different models, together.

    Raises:
        UserError: for fewer than two, two of one model, and studies that did not measure the same.
    """
    studies = _spelled_alike(studies)
    _check(studies)
    studies = _named_apart(studies)
    answers = pd.concat([_answers(study) for study in studies], ignore_index=True)
    answers = pd.concat([group for _, group in answers.groupby("emotion", sort=False)], ignore_index=True)
    rungs = pd.concat([study.verdicts[list(RUNGS)].assign(model=study.model) for study in studies], ignore_index=True)
    tables = {"answers": answers, "rungs": rungs, "together": together(answers, len(studies), _ordered_alike(studies))}
    return AcrossModels(tuple(studies), tuple(_notes(studies)), tables)


def _answers(study: PastStudy) -> pd.DataFrame:
    """A row per emotion: what its study says of it, and the damage that its direction does."""
    rows = study.verdicts.drop_duplicates("emotion")[list(ANSWERS)]
    damage = study.damage.drop_duplicates("emotion")[["emotion", *DAMAGE]]  # of the first depth
    rows = rows.merge(damage, on="emotion", how="left", validate="one_to_one")
    rises = (rows["p_baseline_holm"] <= LEVEL) & (rows["low"] > 0)
    return rows.assign(model=study.model, specific=rows["verdict"] == "specific", steers=rises)


def _spelled_alike(studies: Sequence[PastStudy]) -> list[PastStudy]:
    """The studies with emotions as the first of them spells each: `Joy` of one and `joy` of another are one."""
    spelling = first_spellings(emotion for study in studies for emotion in study.labels)

    def spelled(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(emotion=table["emotion"].map(spelling))

    def placed(study: PastStudy) -> dict[str, Any]:
        return {**study.design, "places": [{**place, "emotion": spelling[place["emotion"]]} for place in study.design["places"]]}

    return [replace(study, design=placed(study), verdicts=spelled(study.verdicts), damage=spelled(study.damage)) for study in studies]


def together(answers: pd.DataFrame, n_models: int, ordered_alike: bool) -> pd.DataFrame:
    """A row per emotion.

    That a claim holds in all models is said if every model's own study says it. For one emotion that is wrong with a probability of at
    most 0.05, for the study of a model in which it does not hold would have to err (the intersection-union test, Berger 1982). Over all
    emotions together it is so if the largest p-values are corrected over the emotions, or the studies test them in the same fixed order.

    Columns: emotion, metric; models (that tested it), specific and steers (in how many); at_least (in how many it is specific with a
    correction over the models, confidence 0.95); lowest, highest (mean changes of the own label); p_all, p_all_holm (against random
    directions: the largest of the models' p, and corrected over the emotions), p_baseline_all, p_baseline_all_holm (against the baseline);
    holds (in all models: `specific`, `steers` or `not shown`), corrected (whether that is so over all emotions together).

    Args:
        ordered_alike: whether all studies test the emotions in the same fixed order.
    """
    rows = []
    for emotion, group in answers.groupby("emotion", sort=False):
        p, p_baseline = (group[column].fillna(1.0).to_numpy(float) for column in ("p_all", "p_baseline"))
        everywhere = len(group) == n_models
        rows.append(
            {
                "emotion": emotion,
                "metric": group["metric"].iloc[0],
                "models": len(group),
                "specific": int(group["specific"].sum()),
                "steers": int(group["steers"].sum()),
                "at_least": at_least(np.where(group["specific"], p, 1.0)),
                "lowest": float(group["effect"].min()),
                "highest": float(group["effect"].max()),
                "p_all": float(p.max()) if everywhere else 1.0,
                "p_baseline_all": float(p_baseline.max()) if everywhere else 1.0,
                "holds": _holds(group, n_models),
            }
        )
    table = pd.DataFrame(rows)
    for column in ("p_all", "p_baseline_all"):
        table[f"{column}_holm"] = corrected(table[column], ["emotions"] * len(table))["p_holm"].to_numpy()
    by_draws = (table["p_all_holm"] <= LEVEL) | ordered_alike
    return table.assign(corrected=by_draws.where(table["holds"] == "specific", table["p_baseline_all_holm"] <= LEVEL))


def _holds(group: pd.DataFrame, n_models: int) -> Holds:
    if group["specific"].sum() == n_models:
        return "specific"
    return "steers" if group["steers"].sum() == n_models else "not shown"


def at_least(p: Floats, level: float = LEVEL) -> int:
    """In how many of the models a claim holds, at the least, with confidence 1 - level.

    That it holds in fewer than u of m is tested by (m - u + 1) times the u-th smallest p (Benjamini and Heller 2008), for u = 1, 2, ...
    until one is not rejected; so the count is too high with a probability of at most `level`.
    """
    m = len(p)
    steps = np.sort(p) * np.arange(m, 0, -1)
    return int(np.cumprod(steps <= level).sum())


def _ordered_alike(studies: Sequence[PastStudy]) -> bool:
    return {study.design["procedure"] for study in studies} == {"sequence"} and len({tuple(study.labels) for study in studies}) == 1


def _check(studies: Sequence[PastStudy]) -> None:
    for run_id, count in Counter(study.run_id for study in studies).items():
        if count > 1:
            raise UserError(f"run {run_id} is given {count} times: give each study once")
    if len(studies) < 2:
        which = f"run {studies[0].run_id} is one study, of {studies[0].model}" if studies else "there is no study"
        raise UserError(f"{which}: give studies of at least two models; what one study found is in its own report.html")
    first, *others = studies
    for other in others:
        pair = f"runs {first.run_id} and {other.run_id}"
        ours, theirs = (dict(study.facts.get("scorer_fingerprints", {})) for study in (first, other))
        if ours != theirs:
            names = f"{', '.join(ours)}; {', '.join(theirs)}"
            raise UserError(f"{pair} were scored by different scorers ({names}): repeat one with scorers= of the other")
        for emotion, label in first.labels.items():
            if other.labels.get(emotion, label) != label:
                raise UserError(
                    f"{pair} have different own labels of {emotion}, {label} and {other.labels[emotion]}: their answers are about "
                    "different things; repeat one with the other's scorers"
                )
    if not set.intersection(*(set(study.labels) for study in studies)):
        raise UserError("the studies share no emotion: " + "; ".join(f"{study.model} has {', '.join(study.labels)}" for study in studies))
    seen: dict[str, PastStudy] = {}
    for study in studies:
        twin = seen.setdefault(str(study.facts.get("model_fingerprint")), study)
        if twin is not study:
            raise UserError(
                f"runs {twin.run_id} and {study.run_id} are studies of one model ({study.model}): what holds in several models takes one study "
                "of each"
            )


def _named_apart(studies: Sequence[PastStudy]) -> tuple[PastStudy, ...]:
    counts = Counter(study.model for study in studies)
    return tuple(study if counts[study.model] == 1 else replace(study, model=f"{study.model} [{study.run_id[:8]}]") for study in studies)


def _notes(studies: Sequence[PastStudy]) -> list[str]:
    """Where the designs differ, in sentences."""
    notes = []
    for name in DESIGN:
        values = [_text(study.design.get(name)) for study in studies]
        if len(set(values)) > 1:
            notes.append(f"The studies differ in {name}: {_by_model(studies, values)}.")
    strengths = [", ".join(dict.fromkeys(f"{place['alpha']:g} {place['alpha_unit']}" for place in study.design["places"])) for study in studies]
    if len(set(strengths)) > 1:
        notes.append(f"The studies differ in strength: {_by_model(studies, strengths)}. What holds in all models holds at these.")
    depths = [str(max(len(place["layers"]) for place in study.design["places"])) for study in studies]
    if len(set(depths)) > 1:
        notes.append(f"The studies differ in how many layers were searched: {_by_model(studies, depths)}.")
    prompts = [tuple(study.design["prompts"]) for study in studies]
    if len(set(map(frozenset, prompts))) > 1:
        shared = len(set.intersection(*map(set, prompts)))
        notes.append(f"The studies have different prompts: {_by_model(studies, [str(len(ids)) for ids in prompts])}; {shared} are in all.")
    emotions = list(dict.fromkeys(emotion for study in studies for emotion in study.labels))
    for emotion in emotions:
        if without := [study.model for study in studies if emotion not in study.labels]:
            notes.append(f"{emotion} was not tested in {', '.join(without)}: that it holds in all models cannot be said.")
    changed = [study.model for study in studies if study.changed]
    return notes + [f"The design for {model} was changed after its study was begun, so its error rate is not known." for model in changed]


def _by_model(studies: Sequence[PastStudy], values: Sequence[str]) -> str:
    return ", ".join(f"{study.model} {value}" for study, value in zip(studies, values, strict=True))


def _text(value: object) -> str:
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else one_line(str(value))

"""What a finished sweep leaves in MLflow, laid out before anything is logged: in memory, and in a folder that outlives the process.

The folder holds `record.json` and `artifacts/`. Times are set here once, so that logging a record twice gives the same metrics, not twice as many.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from emo_mlflow.errors import UserError
from emo_mlflow.models.identity import IDENTITY
from emo_mlflow.report.findings import Finding, findings
from emo_mlflow.report.heads import write_heads_report
from emo_mlflow.report.sweep import note, write_report
from emo_mlflow.settings.sweep import SweepConfig
from emo_mlflow.settings.tables import PARAMETERS
from emo_mlflow.sweeping.layer_scores import dump_scores, layer_scores
from emo_mlflow.sweeping.results import SweepResult, controlled
from emo_mlflow.sweeping.schemas import STREAMED, TABLES
from emo_mlflow.sweeping.swept import SweptHeads
from emo_mlflow.tracking.values import Values, finite, milliseconds, model_params, param_text
from emo_mlflow.types import ASKING, Condition

CHILD_LIMIT = 200
MEASURED = ("emotion", *ASKING)  # the kinds of conditions that have a run of their own
RECORD, ARTIFACTS = "record.json", "artifacts"
SETTING = ("emotion", "layer", "head", "alpha", "patch_window")
CHILD_PARAMS = ("profile", *(name for name, item in PARAMETERS.items() if item.of_child))


@dataclass(frozen=True)
class Child:
    """A condition's run; `metrics` are (name, value, step), and empty until the sweep is finished."""

    condition_id: str
    name: str
    params: Mapping[str, str]
    metrics: Values = ()


@dataclass(frozen=True)
class Record:
    """A sweep's run and its children.

    Attributes:
        timestamp: of all metrics, in milliseconds.
        note: Markdown for the run's page.
        answers: by emotion, in a few words for the table of runs.
        children: those to make; `no_children` says why there are none, if a limit is the reason.
    """

    timestamp: int
    params: Mapping[str, str]
    metrics: Values
    note: str
    answers: Mapping[str, str]
    children: tuple[Child, ...]
    no_children: str | None


def sweep_params(config: SweepConfig) -> dict[str, str]:
    """The parent's params: every setting that has a value, as `config.NAME`."""
    return {f"config.{k}": text for k, v in asdict(config).items() if (text := param_text(v))}


def plan_children(
    config: SweepConfig, conditions: Iterable[Condition | Mapping[Any, Any]]
) -> tuple[tuple[Child, ...], str | None]:
    """A child per condition of an emotion, steered or asked, still without metrics, or why there are none.

    Args:
        conditions: the sweep's, as planned, or rows of the result's table.
    """
    if config.child_runs == "none":
        return (), None
    wanted = [c for c in conditions if (c.kind if isinstance(c, Condition) else c["kind"]) in MEASURED]
    if config.child_runs == "auto" and len(wanted) > CHILD_LIMIT:
        return (), f"none: {len(wanted)} conditions are more than {CHILD_LIMIT}; child_runs=all logs them"
    rows = [asdict(c) | {"condition_id": c.condition_id} if isinstance(c, Condition) else c for c in wanted]
    shared = {name: param_text(getattr(config, name)) for name in CHILD_PARAMS}
    n_windows = len({row["patch_window"] for row in rows if row["kind"] == "emotion"})
    return tuple(_child(shared, row, n_windows) for row in rows), None


def _child(shared: Mapping[str, str], row: Mapping[Any, Any], n_windows: int) -> Child:
    own = {key: param_text(row[key]) for key in (*SETTING, "scope") if not pd.isna(row[key])}
    return Child(str(row["condition_id"]), child_name(row, n_windows), {**shared, **own})


def child_name(condition: Mapping[Any, Any], n_windows: int) -> str:
    """As short as the column of MLflow's table of runs, which cuts off what is longer: `gratitude L12 α2`, `anger L3 H7`."""
    if condition["kind"] in ASKING:
        return f"{condition['emotion']} {condition['kind']}"
    head = None if pd.isna(condition["head"]) else condition["head"]
    name = f"{condition['emotion']} L{condition['layer']} {_strength(head, condition['alpha'])}"
    return f"{name} W{condition['patch_window']}" if n_windows > 1 else name


def sweep_record(result: SweepResult) -> Record:
    """Lays out a finished sweep; numbers that are not finite are left out, which SQL stores would change."""
    rows = result.conditions[result.conditions["kind"].isin(MEASURED)].to_dict("records")
    children, reason = plan_children(result.config, rows)
    effects = result.effects_of(MEASURED)
    facts, found = [(name, value, 0) for name, value in result.metrics.items()], findings(result)
    return Record(
        timestamp=milliseconds(),
        params=sweep_params(result.config) | model_params(result.facts),
        metrics=finite([*best_metrics(found), *facts, *parent_metrics(result.config, effects[effects["kind"] == "emotion"])]),
        note=note(result, found),
        answers=dict(map(best_answer, found)),
        children=_measured(children, rows, effects, result) if children else (),
        no_children=reason,
    )


def _measured(
    children: Iterable[Child], rows: Iterable[Mapping[Any, Any]], effects: pd.DataFrame, result: SweepResult
) -> tuple[Child, ...]:
    """The children with their metrics."""
    by_id = {row["condition_id"]: row for row in rows}
    by_condition = dict(list(effects.groupby("condition_id")))
    randoms: dict[tuple[Any, ...], list[dict[Any, Any]]] = {}
    for _, own in result.effects_of(("random",)).groupby("condition_id", sort=False):
        randoms.setdefault(controlled(own.iloc[0].to_dict()), []).extend(own[["metric", "mean_diff", "draw"]].to_dict("records"))

    def measured(child: Child) -> Child:
        row = by_id[child.condition_id]
        own = child_metrics(by_condition[child.condition_id], randoms.get(controlled(row), ()))
        return replace(child, metrics=finite([*own, ("n_patched", float(row["n_patched"]), 0)]))

    return tuple(map(measured, children))


def effect_name(emotion: str, metric: str, alpha: float, window: int | None, n_alphas: int, n_windows: int) -> str:
    """The parent's metric that holds an effect at step = layer; strength and window are named only where several were swept.

    So two models' parents, selected together in the UI, overlay their layer profiles.
    """
    parts = ["effect", emotion]
    if n_alphas > 1:
        parts.append(f"alpha_{alpha:g}")
    if n_windows > 1 and window is not None:
        parts.append(f"window_{window}")
    return ".".join([*parts, metric])


def parent_metrics(config: SweepConfig, effects: pd.DataFrame) -> Iterator[tuple[str, float, int]]:
    """(name, mean difference, layer) for every emotion condition and metric; of a layer's heads, the one that changes it most."""
    n_windows = effects["patch_window"].nunique()
    order = effects["mean_diff"].abs().sort_values(ascending=False, kind="stable").index
    largest = effects.loc[order].drop_duplicates(["emotion", "layer", "alpha", "patch_window", "metric"]).sort_index()
    for row in largest.to_dict("records"):
        window = None if pd.isna(row["patch_window"]) else int(row["patch_window"])
        name = effect_name(row["emotion"], row["metric"], row["alpha"], window, len(config.alphas), n_windows)
        yield name, row["mean_diff"], int(row["layer"])


def best_metrics(found: Iterable[Finding]) -> Iterator[tuple[str, float, int]]:
    """`best.<emotion>.*` of each emotion's strongest condition: what the run's description says, as numbers that sort first."""
    for item in found:
        place = ("layer", item.layer), ("alpha", item.alpha) if item.head is None else ("head", item.head)
        for name, value in (("diff", item.difference), *place, ("broken", item.broken)):
            yield f"best.{item.emotion}.{name}", float(value), 0


def best_answer(found: Finding) -> tuple[str, str]:
    """An emotion, and the same in a few words: `+0.26, 44% broken, L12 α2`."""
    if found.chosen:
        return found.emotion, "no label of its own"
    broken = "" if math.isnan(found.broken) else f"{found.broken:.0%} broken, "
    return found.emotion, f"{found.difference:+.2f}, {broken}L{found.layer} {_strength(found.head, found.alpha)}"


def _strength(head: int | None, alpha: float) -> str:
    return f"\N{GREEK SMALL LETTER ALPHA}{alpha:g}" if head is None else f"H{head}"


def child_metrics(effects: pd.DataFrame, randoms: Iterable[Mapping[Any, Any]]) -> Iterator[tuple[str, float, int]]:
    """A condition's metrics: `mean.*`, `diff.*` and `d_z.*`, and its random controls' differences as steps of `random.*`."""
    for row in effects.to_dict("records"):
        yield f"mean.{row['metric']}", row["mean_patched"], 0
        yield f"diff.{row['metric']}", row["mean_diff"], 0
        yield f"d_z.{row['metric']}", row["d_z"], 0
    for control in randoms:
        yield f"random.{control['metric']}", control["mean_diff"], int(control["draw"])


def write_artifacts(result: SweepResult, folder: Path) -> None:
    """Writes the artifacts of a sweep into a folder."""
    config = {"config": asdict(result.config), **result.facts}
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    for name, declared in TABLES.items():
        path = folder / f"{name}.parquet"
        if name in STREAMED:
            shutil.copyfile(result.streamed / path.name, path)
        else:
            declared.write(getattr(result, name), path)
    kept = ("fit_hash", "model_fingerprint", "residual_norms", *IDENTITY)
    metadata = {name: str(result.facts[name]) for name in kept if name in result.facts}
    metadata["layer_scores"] = dump_scores(layer_scores(result.effects_of(("emotion",)), result.facts.get("direction_accuracy", {})))
    result.swept.save(folder, metadata)
    if isinstance(result.swept, SweptHeads):
        write_heads_report(result, result.swept, folder)
    else:
        write_report(result, folder)


def write_record(result: SweepResult, folder: Path) -> Record:
    """Writes the record and the artifacts of a sweep; the folder appears when it is complete, and not before.

    Raises:
        UserError: if it cannot be written.
    """
    record = sweep_record(result)
    draft = folder.with_name(f"{folder.name}.draft")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        (draft / ARTIFACTS).mkdir(parents=True)
        write_artifacts(result, draft / ARTIFACTS)
        (draft / RECORD).write_text(json.dumps(asdict(record)), encoding="utf-8")
        for path in draft.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        draft.rename(folder)
    except OSError as error:
        raise UserError(
            f"cannot write {folder}: {error.strerror or error}; the finished cells are kept: free some space, then resume"
        ) from None
    return record


def read_record(folder: Path) -> Record:
    """What `write_record` wrote.

    Raises:
        UserError: if there is no record, or it cannot be read.
    """
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        children = tuple(Child(**{**child, "metrics": _values(child["metrics"])}) for child in found["children"])
        return Record(**{**found, "metrics": _values(found["metrics"]), "children": children})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / RECORD} cannot be read ({error})") from None


def _values(rows: Iterable[tuple[str, float, int]]) -> Values:
    return tuple((name, value, step) for name, value, step in rows)

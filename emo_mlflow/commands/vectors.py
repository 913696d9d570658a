"""Directions and subspaces of a model, judged layer by layer, before a sweep is spent on them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import save_file
from threadpoolctl import threadpool_limits

from emo_mlflow.commands.task import Task
from emo_mlflow.common.csv_files import write_csv
from emo_mlflow.common.machine import pick_device
from emo_mlflow.directions.activations import text_means
from emo_mlflow.directions.files import save_directions
from emo_mlflow.directions.fitting import choose_direction
from emo_mlflow.directions.readouts import judge, method_named
from emo_mlflow.directions.subspaces import Subspaces, check_components, fit_subspaces, stability
from emo_mlflow.models.blocks import BlockStack
from emo_mlflow.models.chat import resolved_form
from emo_mlflow.models.identity import IDENTITY, identity
from emo_mlflow.models.loading import LoadedModel, check, load
from emo_mlflow.models.names import resolve
from emo_mlflow.models.tokens import encode_fit_texts
from emo_mlflow.prompts.columns import Layout
from emo_mlflow.prompts.selection import PromptSet, fit_hash, load_prompts
from emo_mlflow.report.vectors import write_vectors_report
from emo_mlflow.settings.direction_choice import parse_direction
from emo_mlflow.settings.templates import check_form, form_line
from emo_mlflow.settings.vectors import VectorSettings
from emo_mlflow.sweeping.layer_scores import dump_scores
from emo_mlflow.tracking.lifecycle import run_name
from emo_mlflow.tracking.outcome import Outcome, write_config
from emo_mlflow.tracking.values import Values
from emo_mlflow.types import Direction, FloatArray

CHANCE = 0.5


@dataclass(frozen=True, eq=False)
class VectorTables:
    """The tables of a finished `vectors`.

    Attributes:
        readout: as `readout.judge` gives it.
        subspaces: as `subspaces.stability` gives it.
        norms: emotion, layer, direction_norm, residual_norm, ratio.
    """

    readout: pd.DataFrame
    subspaces: pd.DataFrame
    norms: pd.DataFrame


def run_vectors(settings: VectorSettings, out: Path) -> Outcome:
    """Fits directions and subspaces, judges them, and writes tables, figures and report into `out`.

    Raises:
        UserError: for anything that the user can mend, before the model is loaded where it can be known by then.
    """
    check_form(settings)
    device, spec = pick_device(settings.device), resolve(settings.model)
    prompts = load_prompts(
        settings.dataset,
        emotions=settings.emotions,
        max_samples=1,
        seed=settings.seed,
        layout=Layout.of(settings),
        pairs=settings.pairs,
        personas=settings.personas,
    )
    settings = replace(settings, emotions=prompts.emotions)
    labels = [prompt.emotion for prompt in prompts.fit]
    chosen, rank = parse_direction(settings.direction)
    judged = "mean_diff" if rank else chosen  # a subspace injects the mean difference's part in it
    methods = tuple(dict.fromkeys([*settings.methods, judged]))
    for k in (settings.components, rank or 1):
        check_components(k, labels, prompts.reference, d_model=max(1, k))  # the width is not known yet
    for name in methods:
        method_named(name)
    check(spec, device, getattr(torch, settings.dtype))
    auto, form = settings.template == "auto", resolved_form(spec, settings, prompts.fit)
    settings = replace(settings, template=form.template, fit_on=form.fit_on)
    loaded = load(spec, device, getattr(torch, settings.dtype))
    texts = encode_fit_texts(loaded, prompts.fit, form)
    stack = BlockStack(loaded.model)
    means, norms = text_means(stack, texts, settings.site, settings.aggregation, fingerprint=loaded.fingerprint)
    with threadpool_limits(1, user_api="blas"):  # small products: threads wait for each other, measured 30 times slower
        directions = choose_direction(settings.direction, means, labels, prompts.reference, settings.site)
        subspaces = fit_subspaces(means, labels, prompts.reference, settings.components)
        tables = VectorTables(
            judge(means, labels, prompts.reference, methods, settings.seed, prompts.groups),
            stability(means, labels, prompts.reference, subspaces, settings.n_bootstrap, settings.seed),
            norm_table(directions, norms.mean(axis=0)),
        )
    facts = _facts(loaded, prompts, norms.mean(axis=0))
    out.mkdir(parents=True, exist_ok=True)
    read = tables.readout[tables.readout["method"] == judged]
    facts["layer_scores"] = dump_scores(
        {str(emotion): dict(zip(rows["layer"].astype(int), rows["accuracy"], strict=True)) for emotion, rows in read.groupby("emotion")}
    )
    _save_tensors(out, settings, prompts, directions, subspaces, facts, means)
    for name in ("readout", "subspaces", "norms"):
        write_csv(getattr(tables, name), out / f"{name}.csv")
    write_config(out, asdict(settings), facts)
    write_vectors_report(tables.readout, tables.subspaces, tables.norms, settings.model, settings.direction, out)
    return Outcome(
        kind="vectors",
        name=run_name(settings.model, "vectors"),
        facts=facts,
        metrics=_metrics(tables),
        lines=(
            f"Reference  {prompts.compared_with}",
            *([f"Template   {form_line(settings)}"] if settings.template == "chat" or auto else []),
            *_lines(tables, judged, paired=bool(prompts.groups)),
        ),
    )


def norm_table(directions: dict[str, Direction], residual_norms: FloatArray) -> pd.DataFrame:
    """How large each direction is beside the stream that it is added to: emotion, layer, direction_norm, residual_norm, ratio."""
    parts = []
    for emotion, direction in directions.items():
        size = np.linalg.norm(direction.vectors.astype(np.float64), axis=1)
        table = pd.DataFrame({"layer": range(len(size)), "direction_norm": size, "residual_norm": residual_norms})
        parts.append(table.assign(emotion=emotion, ratio=size / residual_norms))
    columns = ["emotion", "layer", "direction_norm", "residual_norm", "ratio"]
    return pd.concat(parts, ignore_index=True)[columns]


def _facts(loaded: LoadedModel, prompts: PromptSet, residual_norms: FloatArray) -> dict[str, object]:
    return {
        "model": {"name": loaded.spec.name, "source": loaded.spec.source, "revision": loaded.spec.revision, **loaded.quantised},
        **identity(loaded),
        "model_fingerprint": loaded.fingerprint,
        "n_layers": loaded.n_layers,
        "d_model": loaded.d_model,
        "reference": prompts.reference,
        "prompt_source": prompts.source,
        "prompt_split": prompts.split,
        "fit_hash": fit_hash(prompts.fit),
        "residual_norms": [float(norm) for norm in residual_norms],
    }


def _save_tensors(
    out: Path,
    settings: VectorSettings,
    prompts: PromptSet,
    directions: dict[str, Direction],
    subspaces: Subspaces,
    facts: dict[str, object],
    means: FloatArray,
) -> None:
    metadata = {name: str(facts[name]) for name in ("fit_hash", "model_fingerprint", "residual_norms", "layer_scores", *IDENTITY)}
    metadata |= {"site": settings.site, "direction": settings.direction, "aggregation": settings.aggregation}
    metadata |= {"template": settings.template, "fit_on": str(settings.fit_on)}
    save_directions(out / "directions.safetensors", directions, metadata)
    tensors = {name: np.ascontiguousarray(basis) for name, basis in subspaces.bases.items()}
    tensors |= {f"{name}.explained": np.ascontiguousarray(shares) for name, shares in subspaces.explained.items()}
    save_file(tensors, str(out / "subspaces.safetensors"), metadata=metadata)
    if settings.save_activations:
        rows = {"prompt_ids": [p.prompt_id for p in prompts.fit], "emotions": [p.emotion for p in prompts.fit]}
        described = metadata | {name: json.dumps(values) for name, values in rows.items()}
        save_file({"activations": means}, str(out / "activations.safetensors"), metadata=described)


def _metrics(tables: VectorTables) -> Values:
    found = [
        (f"readout.{figure}.{row['method']}.{row['emotion']}", float(row[figure]), int(row["layer"]))
        for row in tables.readout.to_dict("records")
        for figure in ("accuracy", "auc")
    ]
    found += [
        (f"norm_ratio.{row['emotion']}", float(row["ratio"]), int(row["layer"]))
        for row in tables.norms.to_dict("records")
    ]
    found += [
        (f"stability.k{row['k']}.{row['emotion']}", float(row["stability"]), int(row["layer"]))
        for row in tables.subspaces.to_dict("records")
    ]
    return tuple(found)


def _lines(tables: VectorTables, method: str, paired: bool) -> list[str]:
    """Per emotion, where its direction reads held-out texts best and worst, and where it reads them no better than chance."""
    lines = ["", f"Held-out {'accuracy by pairs' if paired else 'balanced accuracy'} of {method} as a read-out (95% interval), by layer", ""]
    for emotion, rows in tables.readout[tables.readout["method"] == method].groupby("emotion", sort=False):
        best, worst = (rows.loc[rows["accuracy"].agg(pick)] for pick in ("idxmax", "idxmin"))
        figures = [
            f"{name} {row['accuracy']:.2f} ({row['accuracy_low']:.2f} to {row['accuracy_high']:.2f}) at layer {row['layer']}"
            for name, row in (("best", best), ("worst", worst))
        ]
        lines.append(f"{emotion}: {'; '.join(figures)}")
        if useless := chance_layers(rows):
            lines.append(f"  no better than chance at layer {', '.join(map(str, useless))}: leave these out of a sweep")
    return [*lines, ""]


def chance_layers(rows: pd.DataFrame) -> Sequence[int]:
    """The layers whose interval of held-out accuracy reaches down to chance."""
    return [int(layer) for layer in rows.loc[rows["accuracy_low"] <= CHANCE, "layer"]]


TASK = Task("vectors", "vectors", "model", VectorSettings, run_vectors)

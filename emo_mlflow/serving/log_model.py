"""Logging a condition of a sweep as an MLflow model: `mlflow.pyfunc.load_model(...).predict(prompts)`, `mlflow models serve`."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from emo_mlflow.errors import UserError, reason_of
from emo_mlflow.models.names import ModelSpec, resolve
from emo_mlflow.serving.condition_choice import Choice, Wanted, choose, measured, recommended
from emo_mlflow.serving.portable import log_portable
from emo_mlflow.serving.steered_model import ARTIFACT, RECORDED, GenerationDefaults, Settings, save_steered
from emo_mlflow.tracking.lifecycle import KIND, run_context
from emo_mlflow.tracking.reading import Sweep, load_sweep
from emo_mlflow.tracking.store import check_store, fetch, shown
from emo_mlflow.tracking.values import log_values
from emo_mlflow.types import Say

SWEEP = "emo.sweep"
EXAMPLES = 2
# MLflow takes other values for these names alone (`mlflow.pyfunc.load_model(..., model_config=)`).
LOAD_OPTIONS = {"base_model": RECORDED, "device": "auto"}


@dataclass(frozen=True)
class LogRequest:
    """What to log.

    Attributes:
        run_id: the sweep; None where a comparison of one sweep says which.
        comparison: a comparison's run whose recommendation is taken.
        include_weights: copy the base model into the logged one.
        register: name in the model registry, or None.
    """

    run_id: str | None
    wanted: Wanted
    comparison: str | None = None
    include_weights: bool = False
    register: str | None = None


def log_model(request: LogRequest, tracking_uri: str | None, experiment: str | None, say: Say) -> ModelInfo:
    """Logs a steered model in a run of its own, a child of the sweep's; says what it is and how to use it.

    MLflow tries the input example on what it logs, so the base model is loaded once; where it is not to be had, MLflow warns.

    Raises:
        UserError: for a run that is no finished sweep, a condition that cannot be, a comparison that recommends none, or no server.
    """
    check_store(tracking_uri)
    client = MlflowClient(tracking_uri)
    sweep, choice = _choice(request, client, tracking_uri)
    settings = settings_of(sweep, choice)
    condition = choice.condition
    direction = sweep.directions[str(condition.emotion)]
    layer = int(str(condition.layer))
    where = experiment or client.get_experiment(sweep.run.info.experiment_id).name
    tags = {MLFLOW_PARENT_RUN_ID: sweep.run_id, SWEEP: sweep.run_id}
    name = f"steered {condition.emotion} layer {condition.layer} alpha {condition.alpha:g}"
    with (
        _active_store(tracking_uri),
        run_context(client, "steered_model", name, tags=tags, experiment=where) as run_id,
        mlflow.start_run(run_id, nested=True),
        tempfile.TemporaryDirectory() as temporary,
    ):
        folder = Path(temporary) / ARTIFACT
        folder.mkdir()
        basis = None if direction.basis is None else direction.basis[layer]
        save_steered(folder, settings, direction.vectors[layer], basis, request.include_weights)
        _describe(client, run_id, choice, settings, request)
        example = list(sweep.prompts["text"].head(EXAMPLES))
        info = _log(folder, settings, example, request.register)
    for line in _lines(client, info, choice, request):
        say(line)
    return info


def settings_of(sweep: Sweep, choice: Choice) -> Settings:
    """What the sweep ran the condition with."""
    config, facts, condition = sweep.config, sweep.facts, choice.condition
    found = facts["model"]
    spec = ModelSpec(found["name"], found["source"], resolve(str(config["model"])).location, found["revision"])
    generation = GenerationDefaults(**{name: config[name] for name in GenerationDefaults.__dataclass_fields__})
    norm = float(facts["residual_norms"][int(str(condition.layer))])
    found_doses = sweep.conditions.loc[sweep.conditions["condition_id"] == condition.condition_id, "dose"].dropna()
    dose = float(found_doses.iloc[0]) if len(found_doses) else None
    return Settings(spec, facts["model_fingerprint"], condition, norm, generation, sweep.run_id, dose)


def signature_of(settings: Settings) -> ModelSignature:
    """A column of texts in, texts out; what a call may set, with the sweep's values as defaults.

    The column is `prompt`, or `text` as in a sweep's prompts.parquet, or the only one of a list, which MLflow calls 0; others are ignored.
    """
    generation = settings.generation
    params = [
        ParamSpec("alpha", "double", settings.condition.alpha),
        ParamSpec("max_new_tokens", "long", generation.sequence_length),
        ParamSpec("temperature", "double", generation.temperature),
        ParamSpec("seed", "long", generation.seed),
    ]
    columns = Schema([ColSpec("string", name, required=False) for name in (0, "prompt", "text")])  # type: ignore[arg-type]
    return ModelSignature(inputs=columns, outputs=Schema([ColSpec("string")]), params=ParamSchema(params))


def _choice(request: LogRequest, client: MlflowClient, tracking_uri: str | None) -> tuple[Sweep, Choice]:
    wanted = request.wanted
    if request.comparison is None:
        if request.run_id is None:
            raise UserError("which sweep: give --run-id, or --comparison")
        sweep = load_sweep(request.run_id, tracking_uri)
        n_layers = int(sweep.facts["n_layers"])
        return sweep, choose(wanted, sweep.config, n_layers, sweep.conditions, sweep.effects)
    if wanted != Wanted(wanted.emotion):
        raise UserError("--comparison says which condition: leave out --layer, --alpha, --scope and --patch-window")
    run_id, label = _compared_sweep(request.comparison, request.run_id, client)
    sweep = load_sweep(run_id, tracking_uri)
    table = _recommendations(request.comparison, tracking_uri)
    condition_id, reason = recommended(wanted.emotion, table[table["model"] == label])
    row = sweep.conditions[sweep.conditions["condition_id"] == condition_id].iloc[0]
    return sweep, measured(row.to_dict(), reason, sweep.effects)


def _compared_sweep(comparison: str, run_id: str | None, client: MlflowClient) -> tuple[str, str]:
    """The sweep of a comparison that is meant, and its label there."""
    try:
        run = client.get_run(comparison)
    except MlflowException as error:
        raise UserError(f"there is no run {comparison!r} in this store: {reason_of(error)}") from None
    if run.data.tags.get(KIND) != "comparison" or run.info.status != "FINISHED":
        what = run.data.tags.get(KIND, "run of something else")
        raise UserError(f"run {comparison} is no finished comparison but a {what} that is {run.info.status}")
    labels = {item.dataset.digest: item.dataset.name for item in (run.inputs.dataset_inputs if run.inputs else ())}
    if run_id is None and len(labels) == 1:
        run_id = next(iter(labels))
    if run_id not in labels:
        there = ", ".join(f"{found} ({label})" for found, label in labels.items())
        problem = "which sweep" if run_id is None else f"run {run_id} is not in comparison {comparison}"
        raise UserError(f"{problem}: give one of its sweeps with --run-id, {there}")
    return str(run_id), str(labels[run_id])


def _recommendations(comparison: str, tracking_uri: str | None) -> pd.DataFrame:
    try:
        path = fetch(comparison, "recommendations.csv", tracking_uri)
    except (MlflowException, OSError) as error:
        raise UserError(f"comparison {comparison} has no recommendations: {reason_of(error)}") from None
    return pd.read_csv(path)


@contextmanager
def _active_store(tracking_uri: str | None) -> Iterator[None]:
    """MLflow logs models to its active store alone."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(tracking_uri or before)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)


def _describe(client: MlflowClient, run_id: str, choice: Choice, settings: Settings, request: LogRequest) -> None:
    """Params and metrics of the run, which MLflow shows on the model too."""
    params = {
        "model": settings.model.name,
        "base": "included" if request.include_weights else settings.model.source,
        **{name: value for name, value in asdict(choice.condition).items() if value is not None},
        **asdict(settings.generation),
        "condition_id": choice.condition.condition_id,
        "chosen": choice.reason,
    }
    log_values(client, run_id, params=params, metrics=[(f"diff.{name}", value, 0) for name, value in choice.effects.items()])


def _log(folder: Path, settings: Settings, example: list[str], register: str | None) -> ModelInfo:
    return log_portable(
        name="steered-" + re.sub(r"[^\w-]", "_", str(settings.condition.emotion)),
        python_model=Path(__file__).with_name("model_code.py"),
        artifacts={ARTIFACT: str(folder)},
        needed=lambda _: True,
        signature=signature_of(settings),
        input_example=example,
        model_config=LOAD_OPTIONS,
        registered_model_name=register,
        metadata={SWEEP: settings.sweep, "emo.condition_id": settings.condition.condition_id},
        tags={KIND: "steered_model", SWEEP: settings.sweep},
    )


def _lines(client: MlflowClient, info: ModelInfo, choice: Choice, request: LogRequest) -> list[str]:
    condition = choice.condition
    window = f", window {condition.patch_window}" if condition.patch_window else ""
    uri = f"models:/{request.register}/{info.registered_model_version}" if request.register else info.model_uri
    serve = f"mlflow models serve -m {uri} --env-manager local"
    return [
        f"Condition  {condition.emotion}, layer {condition.layer}, alpha {condition.alpha:g}, scope {condition.scope}{window}",
        f"Chosen     {choice.reason}",
        f"Model      {uri}",
        f"Load       mlflow.pyfunc.load_model({uri!r}).predict(['...'], params={{'alpha': {condition.alpha:g}}})",
        f"Serve      MLFLOW_TRACKING_URI={shown(client.tracking_uri)} {serve}",
    ]

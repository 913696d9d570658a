"""What a person asked for, looked at in a second: before torch and MLflow are loaded, which takes many, and before any model is."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from emo_mlflow.common.files import check_there
from emo_mlflow.errors import UserError
from emo_mlflow.models.folder import CONFIG, depth_of
from emo_mlflow.models.names import EMBEDDED, EMBEDDED_LAYERS, ModelSpec, resolve
from emo_mlflow.settings.layers import resolve_layers
from emo_mlflow.types import Say


def check_asked(given: Mapping[str, str | None], tracking_uri: str | None) -> None:
    """Refuses a data set that is not there, a model by a name that is none, and layers that the model does not have.

    Whatever cannot be known from a few small files is checked later, and so is everything when a run is gone on with.

    Raises:
        UserError: the run that `mlflow run` made, if any, says what it was.
    """
    if _resumed(given):
        return
    try:
        dataset = (given.get("dataset") or "builtin").strip()
        if dataset != "builtin":
            check_there(Path(dataset), "dataset")
        depth = known_depth(resolve((given.get("model") or EMBEDDED).strip()))
        layers = (given.get("layers") or "").strip()
        if depth is not None and layers and ":" not in layers:  # a study may name a layer by emotion
            resolve_layers(layers, depth)
    except UserError as error:
        if os.environ.get("MLFLOW_RUN_ID"):
            from emo_mlflow.tracking.lifecycle import mark_failed

            mark_failed(str(error), tracking_uri)
        raise


def begin(what: str, given: Mapping[str, str | None], tracking_uri: str | None, say: Say) -> None:
    """`check_asked`, and then the first line on the screen, in two seconds.

    Args:
        what: the command, as `Sweep`.

    Raises:
        UserError: as `check_asked`.
    """
    check_asked(given, tracking_uri)
    model = (given.get("model") or given.get("model_a") or EMBEDDED).strip()
    say(f"{what:<10} {_resumed(given) or model}: reading what it needs")


def _resumed(given: Mapping[str, str | None]) -> str | None:
    """The run to go on with, where one is named."""
    run = (given.get("resume") or "none").strip()
    return None if run in ("none", "auto") else run


def known_depth(spec: ModelSpec) -> int | None:
    """How many blocks a model has, as far as that can be read from this machine without reading weights."""
    if spec.source == "embedded":
        return EMBEDDED_LAYERS
    path = Path(spec.location) / CONFIG
    if spec.source == "hub":
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(spec.location, CONFIG, revision=spec.revision)
        path = Path(found) if isinstance(found, str) else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return depth_of(content) if isinstance(content, dict) else None

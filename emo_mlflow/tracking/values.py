"""Params and metrics of a run, in the names, lengths and batches that MLflow takes."""

from __future__ import annotations

import math
import re
import time
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from emo_mlflow.types import digest

A_BATCH, OF_A_KIND = 1000, 100  # MLflow's limits for one request: of all values, and of params or tags among them
PARAM_LENGTH, NAME_LENGTH = 6000, 250  # and for one text

Values = tuple[tuple[str, float, int], ...]  # (name, value, step)


def finite(values: Iterable[tuple[str, float, int]]) -> Values:
    """Without what is not finite, which SQL stores would change."""
    return tuple((name, float(value), step) for name, value, step in values if math.isfinite(value))


def param_text(value: Any) -> str:
    """A setting as a param's text: lists with commas, as a person writes them."""
    text = ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
    return text[:PARAM_LENGTH]


def metric_name(name: str) -> str:
    """A metric's or a tag's name as MLflow takes it: letters of any script, digits and /_.-: and spaces.

    In each part between dots the rest, such as the vowel signs of Hindi, becomes `_`, and a digest keeps such parts apart.
    """
    return ".".join(_part(part) for part in unicodedata.normalize("NFC", name).split("."))[:NAME_LENGTH]


def _part(text: str) -> str:
    taken = re.sub(r"[^/\w\- :]", "_", text)
    return text if taken == text else f"{taken}-{digest(text, 4)}"


def milliseconds() -> int:
    """The time as MLflow has it: milliseconds since 1970."""
    return int(time.time() * 1000)


def log_values(
    client: MlflowClient,
    run_id: str,
    *,
    params: Mapping[str, Any] | None = None,
    metrics: Iterable[tuple[str, float, int]] = (),
    tags: Mapping[str, str] | None = None,
    timestamp: int | None = None,
    model_id: str | None = None,
    send: Callable[[Callable[[], object]], object] = lambda request: request(),
) -> None:
    """Logs params, tags and the finite ones of the metrics, in as many requests as it takes.

    Args:
        timestamp: of the metrics, in milliseconds; None for now.
        model_id: of the logged model that the metrics are of, if any.
        send: makes each request, perhaps several times.
    """
    when = milliseconds() if timestamp is None else timestamp
    texts = [Param(name, param_text(value)) for name, value in (params or {}).items()]
    numbers = [Metric(metric_name(name), value, when, step, model_id=model_id) for name, value, step in finite(metrics)]
    labels = [RunTag(metric_name(key), text) for key, text in (tags or {}).items()]
    while texts or labels or numbers:
        room = A_BATCH - len(texts[:OF_A_KIND]) - len(labels[:OF_A_KIND])
        send(partial(client.log_batch, run_id, params=texts[:OF_A_KIND], tags=labels[:OF_A_KIND], metrics=numbers[:room]))
        texts, labels, numbers = texts[OF_A_KIND:], labels[OF_A_KIND:], numbers[room:]


def model_params(facts: Mapping[str, Any]) -> dict[str, str]:
    """What was found of the model and tells runs apart, as params: how its weights were quantised, if they were."""
    model = facts.get("model")
    found = model.get("quantisation") if isinstance(model, Mapping) else None
    return {"model.quantisation": str(found)} if found else {}

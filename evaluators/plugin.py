"""MLflow's evaluator `emo_text`: `mlflow.models.evaluate(..., model_type="emotion-text", evaluators="emo_text")`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models.evaluation.artifacts import JsonEvaluationArtifact, ParquetEvaluationArtifact
from mlflow.models.evaluation.base import EvaluationArtifact, EvaluationResult, ModelEvaluator
from mlflow.tracking import MlflowClient

from emo_mlflow.errors import UserError
from emo_mlflow.tracking.values import log_values
from emo_mlflow.types import N_BOOTSTRAP

MODEL_TYPE = "emotion-text"
TABLE, RESULTS = "emo_text_scores", "eval_results_table"  # the second is what MLflow's own evaluators call it


@dataclass(frozen=True)
class EmoTextConfig:
    """What `evaluator_config` may hold.

    Attributes:
        scorers: as for `emo_mlflow.scoring.loading.load_scorers`; a single name or several.
        text_column: the data's column with the texts; by default the predictions, or the only column.
        baseline: a column with texts to compare with, row by row.
        n_bootstrap: resamples behind the 95% intervals.
        seed: of the resamples.
    """

    scorers: str | Sequence[str] = "embedded"
    text_column: str | None = None
    baseline: str | None = None
    n_bootstrap: int = N_BOOTSTRAP
    seed: int = 0


class EmoTextEvaluator(ModelEvaluator):
    """Scores each text; logs means, bootstrap intervals, and a table with a row per text."""

    @classmethod
    def can_evaluate(cls, *, model_type: str | None, evaluator_config: Mapping[str, Any] | None, **_: Any) -> bool:
        """Claims its own model type alone."""
        return model_type == MODEL_TYPE

    def evaluate(
        self,
        *,
        model_type: str | None,
        dataset: Any,
        run_id: str,
        evaluator_config: Mapping[str, Any] | None,
        model: Any = None,
        predictions: Any = None,
        model_id: str | None = None,
        **_: Any,
    ) -> EvaluationResult:
        """Metrics `head.label/mean`, `/low`, `/high` (95%); with a baseline `/diff`, `/diff_low`, `/diff_high`, `/d_z`.

        The artifact `emo_text_scores.parquet` holds the texts and a float32 column per metric; `eval_results_table.json` the same for
        MLflow's table view and for `result.tables`.

        Raises:
            UserError: an unknown option, a missing column, or a text that is not a string.
        """
        config = parse_config(evaluator_config)
        texts = _texts(dataset, model, predictions, config)
        baseline = _column(dataset.features_data, config.baseline) if config.baseline else None
        table, metrics = evaluate_texts(texts, baseline, config)
        client = MlflowClient()
        artifacts = _log_table(client, run_id, table)
        log_values(client, run_id, metrics=[(name, value, 0) for name, value in metrics.items()], model_id=model_id)
        return EvaluationResult(metrics=metrics, artifacts=artifacts, run_id=run_id)


def parse_config(payload: Mapping[str, Any] | None) -> EmoTextConfig:
    """Checks `evaluator_config`.

    Raises:
        UserError: an option that there is not.
    """
    values = dict(payload or {})
    known = EmoTextConfig.__dataclass_fields__
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise UserError(f"emo_text has no option {', '.join(unknown)}; its options are {', '.join(known)}")
    return EmoTextConfig(**values)


def evaluate_texts(
    texts: Sequence[str], baseline: Sequence[str] | None, config: EmoTextConfig
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Texts, and the texts that they are compared with -> a row of scores per text, and metrics by name.

    Intervals are those of `emo_mlflow.statistics.paired`. Numbers that cannot be computed are left out.
    """
    from emo_mlflow.scoring.loading import load_scorers
    from emo_mlflow.statistics.paired import paired_effects

    scorers = load_scorers([config.scorers] if isinstance(config.scorers, str) else config.scorers)
    scores = scorers.score(texts)
    table = pd.DataFrame(scores, columns=list(scorers.metrics))
    table.insert(0, "text", list(texts))
    summary = paired_effects(np.zeros_like(scores), scores, config.n_bootstrap, config.seed)
    columns = {"mean": summary["mean_patched"], "low": summary["diff_low"], "high": summary["diff_high"]}
    if baseline is not None:
        reference = scorers.score(baseline)
        effects = paired_effects(reference, scores, config.n_bootstrap, config.seed)
        columns |= {"diff": effects["mean_diff"]} | {n: effects[n] for n in ("diff_low", "diff_high", "d_z")}
        table.insert(1, "baseline", list(baseline))
        table[[f"baseline.{name}" for name in scorers.metrics]] = reference
    metrics = {
        f"{metric}/{name}": float(value)
        for name, values in columns.items()
        for metric, value in zip(scorers.metrics, values, strict=True)
        if np.isfinite(value)
    }
    return table, metrics


def _texts(dataset: Any, model: Any, predictions: Any, config: EmoTextConfig) -> list[str]:
    features = dataset.features_data
    if config.text_column:
        return _column(features, config.text_column)
    if predictions is not None:
        return list(predictions)
    if dataset.has_predictions and dataset.predictions_data is not None:
        return list(dataset.predictions_data)
    if model is not None:
        return list(model.predict(features))
    if isinstance(features, pd.DataFrame) and len(features.columns) == 1:
        return list(features.iloc[:, 0])
    raise UserError("which column holds the texts? pass predictions=COLUMN, or text_column in evaluator_config")


def _column(features: Any, name: str) -> list[str]:
    if not isinstance(features, pd.DataFrame) or name not in features.columns:
        found = ", ".join(map(str, features.columns)) if isinstance(features, pd.DataFrame) else type(features).__name__
        raise UserError(f"the data has no column {name!r} besides the predictions; it has {found}")
    return list(features[name])


def _log_table(client: MlflowClient, run_id: str, table: pd.DataFrame) -> dict[str, EvaluationArtifact]:
    """The rows as parquet, and as the JSON that MLflow reads tables from."""
    where = client.get_run(run_id).info.artifact_uri
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{TABLE}.parquet"
        table.to_parquet(path, index=False)
        client.log_artifact(run_id, str(path))
    client.log_table(run_id, table, f"{RESULTS}.json")
    return {
        TABLE: ParquetEvaluationArtifact(uri=f"{where}/{TABLE}.parquet", content=table),
        RESULTS: JsonEvaluationArtifact(uri=f"{where}/{RESULTS}.json", content=table.to_dict(orient="split", index=False)),
    }

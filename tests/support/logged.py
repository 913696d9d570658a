"""Whether a sweep is in MLflow whole and once."""

from __future__ import annotations

from collections import Counter

import numpy as np
from mlflow import MlflowClient

from emo_mlflow import load_sweep
from emo_mlflow.tracking.record import CHILD_PARAMS
from emo_mlflow.tracking.upload import CONDITION

# Two figures: the scorer has no label of an emotion, so none shows what effects cost.
# The second: their SVG and PDF, which sweeps of this process leave out (conftest).
N_FILES, N_FOR_PAPERS = 14, 4


def check_logged_once(uri: str, run_id: str) -> None:
    """Every condition is one child with all its params and numbers, every metric is once at its step, every file is there."""
    client = MlflowClient(uri)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED" and "emo.failure" not in run.data.tags
    sweep = load_sweep(run_id, uri)
    wanted = sweep.conditions.loc[sweep.conditions["kind"] == "emotion", "condition_id"]
    children = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")
    assert sorted(child.data.tags[CONDITION] for child in children) == sorted(wanted)
    for child in children:
        own = sweep.effects[sweep.effects["condition_id"] == child.data.tags[CONDITION]]
        names = {"mean": "mean_patched", "diff": "mean_diff", "d_z": "d_z"}
        rows = own.to_dict("records")
        expected = {f"{name}.{row['metric']}": row[column] for row in rows for name, column in names.items() if np.isfinite(row[column])}
        found = {name: value for name, value in child.data.metrics.items() if name.partition(".")[0] in names}
        assert child.info.status == "FINISHED" and len(child.data.params) == len(CHILD_PARAMS) + 4 and found == expected
        random = next(name for name in child.data.metrics if name.startswith("random."))
        assert len(client.get_metric_history(child.info.run_id, random)) == 1
    for name in [name for name in run.data.metrics if not name.startswith("progress.")]:
        steps = Counter(metric.step for metric in client.get_metric_history(run_id, name))
        assert set(steps.values()) == {1}, name
    files = [file for folder in ("", "figures") for file in client.list_artifacts(run_id, folder or None) if not file.is_dir]
    assert len(files) in (N_FILES, N_FILES + N_FOR_PAPERS) and all(file.file_size for file in files)
    assert len(sweep.completions) == sweep.facts["n_cells"]

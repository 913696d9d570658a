"""What every test can rely on."""

from __future__ import annotations

import pytest
from mlflow.tracking import fluent
from mlflow.tracking._tracking_service import utils


@pytest.fixture(autouse=True)
def no_run_is_active(monkeypatch):
    """MLflow keeps the active store, run and experiment in the environment and in its modules; none reaches a test, or leaks out of one."""
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "")  # so that what a test itself leaves there is taken out after it, before another module's fixtures
        monkeypatch.delenv(name)
    monkeypatch.setattr(utils, "_tracking_uri", None)
    monkeypatch.setattr(fluent, "_active_experiment_id", None)

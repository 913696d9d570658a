"""What every test can rely on."""

from __future__ import annotations

import sqlite3

import pytest
import sqlalchemy
from mlflow.store.db import utils as database
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


@pytest.fixture(scope="session", autouse=True)
def new_stores_are_copies(tmp_path_factory):
    """MLflow makes the tables of a new store by all its migrations, which takes a second: done once here, then copied."""
    template = tmp_path_factory.mktemp("template") / "mlflow.db"
    engine = sqlalchemy.create_engine(f"sqlite:///{template}")
    database._initialize_tables(engine)
    engine.dispose()
    migrate = database._upgrade_db

    def copy(engine):
        path = engine.url.database
        if engine.dialect.name != "sqlite" or not path or sqlalchemy.inspect(engine).has_table("alembic_version"):
            migrate(engine)
            return
        with sqlite3.connect(template) as source, sqlite3.connect(path) as new:
            source.backup(new)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "_upgrade_db", copy)
        yield

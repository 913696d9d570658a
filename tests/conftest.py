"""What every test can rely on."""

from __future__ import annotations

import sqlite3

import pytest
import sqlalchemy
from mlflow.store.db import utils as database
from mlflow.tracking import fluent
from mlflow.tracking._tracking_service import utils

from emo_mlflow.report import style


@pytest.fixture(autouse=True)
def no_run_is_active(monkeypatch):
    """MLflow keeps the active store, run and experiment in the environment and in its modules; none reaches a test, or leaks out of one."""
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "")  # so that what a test itself leaves there is taken out after it, before another module's fixtures
        monkeypatch.delenv(name)
    monkeypatch.setattr(utils, "_tracking_uri", None)
    monkeypatch.setattr(fluent, "_active_experiment_id", None)


@pytest.fixture(scope="session")
def for_papers():
    """The formats that `figures_are_for_the_screen` leaves out."""
    return dict(style.FOR_PAPERS)


@pytest.fixture(scope="session", autouse=True)
def figures_are_for_the_screen(for_papers):
    """SVG and PDF take three times as long as the PNG, in every sweep; tests/report/test_style.py writes them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "FOR_PAPERS", {})
        yield


@pytest.fixture(scope="session", autouse=True)
def new_stores_are_copies(tmp_path_factory):
    """MLflow makes the tables of a new store by all its migrations, which takes a second: done once, then copied."""
    template = tmp_path_factory.mktemp("template") / "mlflow.db"
    migrate = database._upgrade_db

    def copy(engine):
        path = engine.url.database
        new = engine.dialect.name == "sqlite" and path and not sqlalchemy.inspect(engine).has_table("alembic_version")
        if not (new and template.exists()):
            migrate(engine)
        if new:
            source, target = (template, path) if template.exists() else (path, template)
            with sqlite3.connect(source) as whole, sqlite3.connect(target) as empty:
                whole.backup(empty)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "_upgrade_db", copy)
        yield

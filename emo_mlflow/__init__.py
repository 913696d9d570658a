"""Emotion directions, injected into language models as they write: sweeps, scores and statistics in MLflow.

Importing this package imports nothing heavy: the public names load on first use (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

_PUBLIC = {
    "UserError": "emo_mlflow.errors",
    "sweep": "emo_mlflow.commands.from_python",
    "heads": "emo_mlflow.commands.from_python",
    "study": "emo_mlflow.commands.from_python",
    "vectors": "emo_mlflow.commands.from_python",
    "align": "emo_mlflow.commands.from_python",
    "LoggedRun": "emo_mlflow.tracking.logged_run",
    "Sweep": "emo_mlflow.tracking.reading",
    "load_sweep": "emo_mlflow.tracking.reading",
    "find_sweeps": "emo_mlflow.tracking.reading",
    "compare": "emo_mlflow.commands.compare",
    "compare_studies": "emo_mlflow.commands.compare",
    "score": "emo_mlflow.scoring.loading",
    "steer": "emo_mlflow.commands.steer",
}

__all__ = [
    "LoggedRun", "Sweep", "UserError", "__version__", "align", "compare", "compare_studies", "find_sweeps", "heads", "load_sweep", "score", "steer",
    "study", "sweep", "vectors",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

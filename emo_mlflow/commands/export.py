"""`emo-mlflow export`, the entry point export_scorers: classifiers to ONNX, into the cache that sweeps read from."""

from __future__ import annotations

from collections.abc import Mapping

from emo_mlflow.evaluators.export import export_scorer
from emo_mlflow.scoring.cards import SETS
from emo_mlflow.settings.declared import read
from emo_mlflow.settings.export import ScorerExport
from emo_mlflow.settings.tables import EXPORT
from emo_mlflow.types import Say


def run_export(given: Mapping[str, str | None], say: Say) -> None:
    """Exports one scorer or a set of them, and says where each lies.

    Raises:
        UserError: for anything that the user can mend.
    """
    settings = ScorerExport(**read(EXPORT, given))
    for source in SETS.get(settings.scorer, (settings.scorer,)):
        say(str(export_scorer(source, settings.precision, settings.optimize, settings.weights)))

"""The settings of `compare`."""

from __future__ import annotations

from dataclasses import dataclass

from emo_mlflow.settings.declared import parameter
from emo_mlflow.settings.parsing import as_it_is, choice, integer, or_nothing, run_ids
from emo_mlflow.types import N_BOOTSTRAP

WHOLE = "comparison"  # corrections cover all own labels of it, and all other scores


# fmt: off
@dataclass(frozen=True, kw_only=True)
class CompareSettings:
    """What to compare and how. Without `runs`, the newest finished sweep of each model in an experiment is taken."""

    runs: tuple[str, ...] = parameter(run_ids, "", "Ids of sweeps (and alignments), or of studies, with commas; default: by experiment.", "what")
    from_experiment: str | None = parameter(
        or_nothing(as_it_is), "", "Take the newest finished sweep (or study) of each model there; default: --experiment.", "what"
    )
    phase: str = parameter(
        choice("residual", "head", "study"), "residual",
        "What to take from the experiment: sweeps of directions (residual), over heads (head), or studies (study).", "what",
    )
    filter: str | None = parameter(or_nothing(as_it_is), "", "A further MLflow filter on the sweeps to take.", "what")
    family: str = parameter(
        as_it_is, WHOLE, "What a correction covers: comparison (own labels, and other scores), or columns such as own,model.", "how much"
    )
    language: str = parameter(as_it_is, "en", "Of the report: en or ja.", "logging")
    n_bootstrap: int = parameter(integer(100), str(N_BOOTSTRAP), "Resamples of the prompts behind the intervals.", "how much")
    seed: int = parameter(integer(0), "0", "Seed of the resamples.", "running")

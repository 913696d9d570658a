"""The parameters of every entry point of MLproject, and the command that each calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from emo_mlflow.settings.align import AlignSettings
from emo_mlflow.settings.compare import CompareSettings
from emo_mlflow.settings.declared import Parameter, table_of
from emo_mlflow.settings.export import ScorerExport
from emo_mlflow.settings.profiles import OF_HEADS, PROFILES
from emo_mlflow.settings.steer import SteerSettings
from emo_mlflow.settings.study import StudySettings
from emo_mlflow.settings.sweep import HeadSettings, SweepSettings
from emo_mlflow.settings.vectors import VectorSettings

PARAMETERS, STUDY, HEADS, VECTORS, ALIGN, COMPARE, EXPORT, STEER = map(
    table_of, (SweepSettings, StudySettings, HeadSettings, VectorSettings, AlignSettings, CompareSettings, ScorerExport, SteerSettings)
)


@dataclass(frozen=True)
class EntryPoint:
    """What `mlflow run . -e NAME` does.

    Attributes:
        command: of `emo-mlflow`.
        profiles: by name, what each sets; empty where there are none.
        called: what MLproject calls a parameter, where that is another name.
    """

    command: str
    parameters: Mapping[str, Parameter]
    profiles: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    called: Mapping[str, str] = field(default_factory=dict)

    @property
    def in_project(self) -> dict[str, str]:
        """The parameter, or `profile`, behind each name in MLproject."""
        first, *rest = ((self.called.get(name, name), name) for name in self.parameters)
        return dict([first, *([("profile", "profile")] if self.profiles else []), *rest])


ENTRY_POINTS = {
    "main": EntryPoint("sweep", PARAMETERS, PROFILES),
    "study": EntryPoint("study", STUDY),
    "vectors": EntryPoint("vectors", VECTORS),
    "align": EntryPoint("align", ALIGN),
    "heads": EntryPoint("heads", HEADS, OF_HEADS),
    "compare": EntryPoint("compare", COMPARE, called={"from_experiment": "experiment"}),
    "export_scorers": EntryPoint("export", EXPORT),
}

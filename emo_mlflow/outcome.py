"""What vectors, alignments and head screenings hand back: files in a folder, and what a run's page shows of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from emo_mlflow import __version__

VERSIONED = ("torch", "transformers", "numpy", "scipy")

Metrics = tuple[tuple[str, float, int], ...]


@dataclass(frozen=True, eq=False)
class Outcome:
    """A finished entry point; its files are in the folder that it was given.

    Attributes:
        kind: `vectors`, `alignment` or `heads`, the tag emo.kind of its run.
        name: of its run.
        facts: what was found rather than chosen; config.json has them beside the settings.
        metrics: (name, value, step), the step being the layer where there is one.
        lines: the answer for the terminal.
    """

    kind: str
    name: str
    facts: Mapping[str, Any]
    metrics: Metrics
    lines: tuple[str, ...]


def write_config(folder: Path, settings: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Writes config.json: the settings as resolved, what was found, and the versions that it was found with."""
    versions = {name: version(name) for name in VERSIONED}
    versions |= {"emo_mlflow": __version__, "python": sys.version.split()[0]}
    content = {"config": settings, **facts, "versions": versions}
    (folder / "config.json").write_text(json.dumps(content, indent=1), encoding="utf-8")

"""What a sweep changes in the model: directions that are injected, or heads that are replaced. Two kinds of one plan."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.numpy import save_file

from emo_mlflow.common.csv_files import write_csv
from emo_mlflow.directions.files import save_directions
from emo_mlflow.types import Fit, FloatArray


class Swept(ABC):
    """What all conditions of a sweep are made from, small enough to send to every machine.

    `grid.intervention` makes a condition of it; reports and records read it without torch.
    """

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What was found rather than chosen, for config.json."""

    def dose(self, condition_id: str) -> float | None:
        """What the condition's direction is multiplied by, where alpha says something else."""
        return None

    @abstractmethod
    def save(self, folder: Path, metadata: Mapping[str, str]) -> None:
        """Writes it into the artifacts of a sweep."""


@dataclass(frozen=True, eq=False)
class SweptDirections(Swept):
    """Directions, and the residual norms at their site.

    Attributes:
        doses: by condition id, the multiple of its direction that does the damage which alpha says; of `alpha_unit=kl` only.
    """

    fit: Fit
    doses: Mapping[str, float] = field(default_factory=dict)

    def dose(self, condition_id: str) -> float | None:
        """Of a condition whose alpha is a budget of damage."""
        return self.doses.get(condition_id)

    def facts(self) -> dict[str, Any]:
        """Residual norms and, of directions that were fitted, how well they tell texts apart."""
        return {
            "residual_norms": [float(norm) for norm in self.fit.residual_norms],
            "direction_accuracy": {name: [float(x) for x in row] for name, row in self.fit.accuracy.items()},
        }

    def save(self, folder: Path, metadata: Mapping[str, str]) -> None:
        """directions.safetensors."""
        save_directions(folder / "directions.safetensors", self.fit.directions, metadata)


@dataclass(frozen=True, eq=False)
class SweptHeads(Swept):
    """How heads were ranked, and what replaces each.

    Attributes:
        effects: as `directions.heads.direct_effects` gives them, for every head up to the target.
        target_layer: the block after which direct effects were measured.
        replacements: by emotion, float32 [n_layers, n_heads, head_dim].
    """

    effects: pd.DataFrame
    target_layer: int
    replacements: Mapping[str, FloatArray]

    def facts(self) -> dict[str, Any]:
        """Heads per block; there are no norms, which strengths would be in."""
        n_heads = next(iter(self.replacements.values())).shape[1]
        return {"n_heads": n_heads, "residual_norms": [], "direction_accuracy": {}}

    def save(self, folder: Path, metadata: Mapping[str, str]) -> None:
        """replacements.safetensors and heads.csv."""
        save_file(dict(self.replacements), str(folder / "replacements.safetensors"), metadata=dict(metadata))
        write_csv(self.effects, folder / "heads.csv")

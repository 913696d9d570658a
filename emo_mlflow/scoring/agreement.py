"""How well a scorer's numbers agree with readers on text written under intervention, as its card says it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

from emo_mlflow.common.names import shown
from emo_mlflow.errors import UserError

Measure = Literal["auc", "spearman"]
ALL = "all"  # the texts of every model together
LEAST = 20  # texts with a hint, or without one, below which an AUC says too little


@dataclass(frozen=True)
class Agreement:
    """One metric against what readers said of the same texts.

    Attributes:
        metric: of the scorer, or a difference of two, `a - b`.
        question: what the readers were asked.
        measure: the AUC of the metric against "any hint" (the readers' mean is beyond 0, on the metric's side), or Spearman's correlation with
            the readers' mean.
        texts: `all`, or the model that wrote them.
        n: texts; `positives` of them have a hint, where the measure is an AUC.
        value, low, high: the measure, and its 95% interval.
        in_hits, elsewhere: mean of the metric over the texts with a hint, and over the others.
        calibration_error: expected calibration error of the metric as the probability of a hint; a share.
        at_most: the largest rank correlation that a score without ties can have here, because readers give many texts the same label.
    """

    metric: str
    question: str
    measure: Measure
    texts: str
    n: int
    value: float
    low: float
    high: float
    positives: int | None = None
    in_hits: float | None = None
    elsewhere: float | None = None
    calibration_error: float | None = None
    at_most: float | None = None

    @property
    def too_few(self) -> bool:
        """Whether there are too few texts of one kind to say how well the metric tells them apart."""
        return self.positives is not None and min(self.positives, self.n - self.positives) < LEAST


_KINDS: dict[str, type | tuple[type, ...]] = {"str": str, "int": int, "float": (int, float), "int | None": int, "float | None": (int, float)}
_NEEDED = [name for name in get_type_hints(Agreement) if not hasattr(Agreement, name)]


def parse_agreements(payload: Any, where: str) -> tuple[Agreement, ...]:
    """A list of mappings as YAML holds it -> what it says.

    Raises:
        UserError: for anything else; `where` names it.
    """
    if not isinstance(payload, Sequence) or isinstance(payload, str):
        raise UserError(f"{where}: readers must be a list, found {shown(payload)}")
    return tuple(_parse(row, f"{where}, readers {i + 1}") for i, row in enumerate(payload))


def _parse(row: Any, where: str) -> Agreement:
    if not isinstance(row, Mapping) or not set(_NEEDED) <= set(row) or not set(row) <= set(Agreement.__annotations__):
        raise UserError(f"{where}: expected {', '.join(Agreement.__annotations__)}, found {shown(row)}")
    for name, value in row.items():
        kind = _KINDS.get(Agreement.__annotations__[name], str)
        if isinstance(value, bool) or not isinstance(value, kind) or (isinstance(value, float) and not math.isfinite(value)):
            raise UserError(f"{where}: {name} is {shown(value)}")
    if row["measure"] not in get_args(Measure):
        raise UserError(f"{where}: measure {shown(row['measure'])} is not one of {', '.join(get_args(Measure))}")
    return Agreement(**row)

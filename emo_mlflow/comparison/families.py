"""Which tests are corrected together, and when one is significant."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from emo_mlflow.errors import UserError
from emo_mlflow.scoring.targets import target_metric
from emo_mlflow.settings.compare import WHOLE
from emo_mlflow.statistics import corrected
from emo_mlflow.statistics.moments import Mask

OWN = "own"  # the column that says whether a test is of the emotion's own label
OWN_LABELS, OTHERS = "own labels", "other scores"
COLUMNS = (OWN, "model", "emotion", "layer", "head", "alpha", "scope", "patch_window", "metric")
SIGNIFICANT = 0.05
ROUNDING = 1e-9  # three tests at p = 1/60 are significant together, whatever 3 * (1 / 60) is


def significant(p: npt.ArrayLike) -> Mask:
    """Where a p-value is at most SIGNIFICANT; not where it is NaN."""
    return np.asarray(p, float) <= SIGNIFICANT * (1 + ROUNDING)


def parse_family(text: str) -> tuple[str, ...]:
    """`comparison` for the emotions' own labels as one family and all other scores as another; or columns, such as `own,model`,
    for one family per combination of them.

    Raises:
        UserError: for a name that is no such column.
    """
    if text == WHOLE:
        return (OWN,)
    columns = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if unknown := [column for column in columns if column not in COLUMNS]:
        raise UserError(f"family={text!r}: {unknown[0]!r} is not one of {WHOLE}, {', '.join(COLUMNS)}")
    return columns


def own_labels(table: pd.DataFrame) -> Mask:
    """Which rows are tests of their emotion's own label, or of one of their two emotions'; all, in a table that has no other metrics."""
    if "metric" not in table.columns:
        return np.ones(len(table), bool)
    metrics = set(table["metric"])
    own = np.zeros(len(table), bool)
    for column in ("emotion", "first", "second"):
        if column in table.columns:
            targets = {emotion: target_metric(emotion, metrics) for emotion in table[column].unique()}
            own |= (table[column].map(targets) == table["metric"]).to_numpy(bool)
    return own


def with_corrections(table: pd.DataFrame, p: str, family: tuple[str, ...]) -> pd.DataFrame:
    """Adds own, family (its name), family_size and corrections of column `p`; columns that the table lacks divide nothing."""
    table = table.assign(own=own_labels(table))
    names = pd.Series(WHOLE, index=table.index, dtype=object)
    parts = [_named(table, column) for column in family if column in table.columns]
    if parts and len(table):
        names = pd.concat(parts, axis=1).agg(", ".join, axis=1)
    return pd.concat([table.assign(family=names), corrected(table[p], names).set_index(table.index)], axis=1)


def _named(table: pd.DataFrame, column: str) -> pd.Series:
    if column == OWN:
        return pd.Series(np.where(table[OWN], OWN_LABELS, OTHERS), index=table.index)
    return f"{column}=" + table[column].astype(str)

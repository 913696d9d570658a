"""Which tests are corrected together."""

from __future__ import annotations

import pandas as pd

from emo_mlflow.errors import UserError
from emo_mlflow.settings.compare import WHOLE
from emo_mlflow.statistics import corrected

COLUMNS = ("model", "emotion", "layer", "head", "alpha", "scope", "patch_window", "metric")
SIGNIFICANT = 0.05


def parse_family(text: str) -> tuple[str, ...]:
    """`comparison` for one family of all tests, or columns, such as `model,metric`, for one per combination of them.

    Raises:
        UserError: for a name that is no such column.
    """
    if text == WHOLE:
        return ()
    columns = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if unknown := [column for column in columns if column not in COLUMNS]:
        raise UserError(f"family={text!r}: {unknown[0]!r} is not one of {WHOLE}, {', '.join(COLUMNS)}")
    return columns


def with_corrections(table: pd.DataFrame, p: str, family: tuple[str, ...]) -> pd.DataFrame:
    """Adds family (its name), family_size and corrections of column `p`; columns it lacks divide nothing."""
    present = [column for column in family if column in table.columns]
    names = pd.Series(WHOLE, index=table.index, dtype=object)
    if present:
        parts = [f"{column}=" + table[column].astype(str) for column in present]
        names = pd.concat(parts, axis=1).agg(", ".join, axis=1) if len(table) else names
    return pd.concat([table.assign(family=names), corrected(table[p], names).set_index(table.index)], axis=1)

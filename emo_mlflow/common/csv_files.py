"""Tables as CSV files that a spreadsheet can open: no text in them is run as a formula."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

# What a spreadsheet takes for the start of a formula, or skips before it looks for one; the last four in East Asian settings.
FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Writes a table; texts that would be run get an apostrophe in front, numbers stay numbers."""
    without_formulas(table).to_csv(path, index=False)


def without_formulas(table: pd.DataFrame) -> pd.DataFrame:
    """The table with an apostrophe before every text, also a column's name, that a spreadsheet would run as a formula."""
    guarded = table.copy()
    for i, column in enumerate(table.columns):
        if not pd.api.types.is_numeric_dtype(table.dtypes.iloc[i]):
            guarded[column] = [_guarded(value) for value in table[column]]
    guarded.columns = pd.Index([_guarded(column) for column in table.columns])
    return guarded


def _guarded(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = f"'{value}" if value.startswith(FORMULAS) else value
    return text.replace("\r\n", "\n").replace("\r", "\n")  # which is put in quotes: after a bare CR a new row begins

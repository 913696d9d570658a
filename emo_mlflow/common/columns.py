"""Tables whose columns are declared once, with type, unit and meaning: how they are written, and how a file of them is doubted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pandas.api.types import is_bool_dtype, is_complex_dtype, is_numeric_dtype

from emo_mlflow.common.names import shown
from emo_mlflow.errors import UserError

TEXT, WHOLE, NUMBER, SINGLE = pa.large_string(), pa.int64(), pa.float64(), pa.float32()


def column(name: str, kind: pa.DataType, description: str, unit: str = "") -> pa.Field:
    """A column: TEXT, WHOLE (a whole number of at least 0), NUMBER or SINGLE; a parquet file has unit and description in its metadata."""
    return pa.field(name, kind, metadata={"description": description, **({"unit": unit} if unit else {})})


@dataclass(frozen=True)
class Declared:
    """A table's columns.

    Attributes:
        content: what a row is.
        key: the columns that identify a row, which all rows have.
        filled: others that all rows have; an empty text is a text.
        later: columns that files of earlier versions lack.
        further: what every column that is not listed is, under its own name; None where there are no others.
    """

    content: str
    columns: tuple[pa.Field, ...]
    key: tuple[str, ...]
    filled: tuple[str, ...] = ()
    later: tuple[str, ...] = ()
    further: pa.Field | None = None

    @property
    def names(self) -> list[str]:
        """The columns that are always there, in their order."""
        return [item.name for item in self.columns]

    def field(self, name: str) -> pa.Field:
        """A column by name."""
        return next((item for item in self.columns if item.name == name), self.further and self.further.with_name(name))

    def schema(self, names: Iterable[str]) -> pa.Schema:
        """The schema of a table with these columns."""
        return pa.schema([self.field(name) for name in names])

    def write(self, table: pd.DataFrame, path: Path) -> None:
        """Writes a table as parquet, the declared types, units and descriptions in it.

        Raises:
            ValueError: if its columns are not those that are declared, or hold something else; so it is a fault of the program.
        """
        with self.writer(path) as write:
            write(table)

    @contextmanager
    def writer(self, path: Path) -> Iterator[Callable[[pd.DataFrame], None]]:
        """What writes a table part by part, each a row group, as `write` does a whole one."""
        writer: pq.ParquetWriter | None = None

        def write(part: pd.DataFrame) -> None:
            nonlocal writer
            found = list(part.columns)
            if found[: len(self.columns)] != self.names or (self.further is None and len(found) > len(self.columns)):
                raise ValueError(f"{path.name} has the columns {found}, and is declared to have {self.names}")
            rows = pa.Table.from_pandas(part, self.schema(found), preserve_index=False)
            writer = writer or pq.ParquetWriter(path, rows.schema)
            writer.write_table(rows)

        try:
            yield write
        finally:
            if writer is not None:
                writer.close()

    def read(self, path: Path, where: str) -> pd.DataFrame:
        """Reads a table that somebody else may have written, with the columns that it lacks because it is of an earlier version empty.

        Args:
            where: names the file in errors.

        Raises:
            UserError: if it is no parquet file, lacks a column, has one of the wrong kind, rows without a key, or two rows for one.
        """
        try:
            table = read_parquet(path)
        except Exception as error:  # of Arrow, or of pandas over the metadata that the file holds for it
            raise UserError(f"{where} cannot be read: {shown(str(error))}") from None
        if not table.columns.is_unique or not all(isinstance(name, str) for name in table.columns):
            raise UserError(f"{where} has columns that are not named, or two of one name")
        if missing := [name for name in self.names if name not in table and name not in self.later]:
            raise UserError(f"{where} has no column {missing[0]!r}: it is damaged, or not of this package")
        for name in table.columns:
            if (declared := self.field(name)) is not None:
                _check_kind(table[name], declared.type, where)
        needed = [*self.key, *self.filled]
        if table[needed].isna().any(axis=None) or table.duplicated(list(self.key)).any():
            raise UserError(f"{where} has rows without {', '.join(needed)}, or several rows for one")
        absent = {name: pd.Series(None, table.index, PANDAS[self.field(name).type]) for name in self.later if name not in table}
        return table.assign(**absent)


def read_parquet(path: Path) -> pd.DataFrame:
    """A parquet file of which every byte was looked at: Arrow takes text that is no UTF-8, and whoever compares it fails later.

    Raises:
        Exception: of Arrow, or of pandas over the metadata that the file holds for it.
    """
    # Without partitions: a folder's name is no column. The dtypes are those that pandas wrote, such as nullable integers.
    table = pq.read_table(path, partitioning=None)
    table.validate(full=True)
    return table.to_pandas()


def dataset(path: Path) -> ds.Dataset:
    """A parquet file of which only what is asked for is read."""
    return ds.dataset(path, format=ds.ParquetFileFormat(default_fragment_scan_options=ds.ParquetFragmentScanOptions(pre_buffer=False)))


def rows_of(table: ds.Dataset, wanted: pc.Expression, columns: list[str] | None = None) -> pd.DataFrame:
    """The rows that are wanted, looked for in one row group after another: Arrow's own way holds many of them at a time."""
    return table.to_table(columns, filter=wanted, batch_readahead=1, use_threads=False).to_pandas()


def scan_parquet(declared: Declared, path: Path, where: str) -> ds.Dataset:
    """A table on disk, of which only the rows and columns are read that somebody asks for.

    Its columns are checked against the declared ones, and its rows are not.

    Raises:
        UserError: if it is no parquet file, lacks a column, or has one of the wrong kind.
    """
    try:
        found = dataset(path)
    except Exception as error:  # of Arrow, over a file that is none
        raise UserError(f"{where} cannot be read: {shown(str(error))}") from None
    if missing := [name for name in declared.names if name not in found.schema.names and name not in declared.later]:
        raise UserError(f"{where} has no column {missing[0]!r}: it is damaged, or not of this package")
    for column in found.schema:
        if (expected := declared.field(column.name)) is not None and not _is_like(column.type, expected.type):
            raise UserError(f"{where}: the column {shown(column.name)} holds {column.type}")
    return found


def _is_like(found: pa.DataType, declared: pa.DataType) -> bool:
    if pa.types.is_null(found):
        return True
    if declared == TEXT:
        return pa.types.is_string(found) or pa.types.is_large_string(found)
    return pa.types.is_integer(found) or (declared != WHOLE and pa.types.is_floating(found))


VALUES: dict[pa.DataType, Callable[[Any], Any]] = {TEXT: str, WHOLE: int, NUMBER: float, SINGLE: float}
PANDAS = {TEXT: "object", WHOLE: "Int64", NUMBER: "Float64"}  # the dtypes in which a value may be missing


def _check_kind(values: pd.Series, kind: pa.DataType, where: str) -> None:
    what = "texts" if kind == TEXT else "numbers"
    if not (_are_texts(values) if kind == TEXT else _are_numbers(values)):
        raise UserError(f"{where}: the column {shown(values.name)} holds something other than {what}")
    if kind == WHOLE:
        numbers = values.dropna().astype(float)
        if (numbers % 1 != 0).any() or (numbers < 0).any():
            raise UserError(f"{where}: the column {shown(values.name)} holds something other than whole numbers of at least 0")


def _are_numbers(values: pd.Series) -> bool:
    if not is_numeric_dtype(values.dtype) or is_bool_dtype(values.dtype) or is_complex_dtype(values.dtype):
        return bool(values.isna().all())
    return not bool(np.isinf(values.to_numpy(dtype=float, na_value=np.nan)).any())


def _are_texts(values: pd.Series) -> bool:
    if isinstance(values.dtype, pd.StringDtype):
        return True
    return all(isinstance(value, str) or value is None or value is pd.NA or value != value for value in values)

"""Scores kept on disk, so that a text that was scored before costs nothing."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from emo_mlflow.errors import UserError
from emo_mlflow.types import FloatArray

_CHUNK = 500  # SQLite allows 999 variables in a statement on old versions


class ScoreCache:
    """A SQLite file with a row of float32 per (scorer fingerprint, text); several processes may share it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._connection() as connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS scores "
                "(scorer TEXT, text BLOB, row BLOB NOT NULL, PRIMARY KEY (scorer, text)) WITHOUT ROWID"
            )

    def read(self, scorer: str, texts: Sequence[str], width: int) -> dict[str, FloatArray]:
        """The texts that are known, with their scores, float32 [width]."""
        by_hash = {_hash(text): text for text in texts}
        hashes = list(by_hash)
        known: dict[str, FloatArray] = {}
        with self._connection() as connection:
            for start in range(0, len(hashes), _CHUNK):
                part = hashes[start : start + _CHUNK]
                query = f"SELECT text, row FROM scores WHERE scorer = ? AND text IN ({','.join('?' * len(part))})"
                for found, row in connection.execute(query, [scorer, *part]):
                    if isinstance(row, bytes) and len(row) == 4 * width:
                        known[by_hash[found]] = np.frombuffer(row, dtype="<f4")
        return known

    def write(self, scorer: str, rows: Mapping[str, FloatArray]) -> None:
        """Adds scores; a text that is known already is replaced."""
        with self._connection() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO scores VALUES (?, ?, ?)",
                ((scorer, _hash(text), np.asarray(row, dtype="<f4").tobytes()) for text, row in rows.items()),
            )

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self._path, timeout=60)) as connection, connection:
                yield connection
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # the second in an error's own text
            raise UserError(f"the score cache {self._path} cannot be used ({error}): name another file") from None


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()

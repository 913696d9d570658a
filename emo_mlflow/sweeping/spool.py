"""Finished work on disk: an append-only file of checksummed records, from which a stopped sweep goes on."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from emo_mlflow.common.files import sync_folder
from emo_mlflow.errors import UserError
from emo_mlflow.types import Cell, Completion

CELLS = "cells.spool"


class Header(dict[str, Any]):
    """What a spool says of its work. A key that is missing was not written by the version that began it."""

    def __init__(self, path: Path, values: Any) -> None:
        self.path = path
        if not isinstance(values, dict):
            raise UserError(f"{path} does not begin with what its work is: remove it and start the sweep anew")
        super().__init__(values)

    def __missing__(self, key: str) -> Any:
        raise UserError(f"{self.path} does not say its {key}: another version wrote it; remove it and start the sweep anew")


class Spool:
    """A file whose first line says what the work is, and whose further lines each hold a batch of finished records.

    A line is the CRC-32 of its JSON, a space, the JSON. A line is written whole and synced before `append` returns, so only the last one
    can be torn; it is cut off when the file is read.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / CELLS

    def begin(self, header: dict[str, Any]) -> None:
        """Starts the file, or checks that it was started for the same work.

        Raises:
            UserError: if it holds other work, or cannot be written.
        """
        first = next(self._lines(), None)
        if first is None:
            self._write(header)
        elif Header(self.path, first)["work"] != header["work"]:
            raise UserError(
                f"{self.path} holds cells of a sweep with other settings, or the data set or the model changed since: "
                "resume with what it was started with, or start a new run"
            )

    def header(self) -> Header:
        """What `begin` wrote.

        Raises:
            UserError: if there is nothing, or it is not what a sweep writes; and for a key that it lacks, when that is looked up.
        """
        try:
            with self.path.open("rb") as file:
                found = _payload(file.readline())
        except OSError:
            found = None
        if found is None:
            raise UserError(f"there is nothing to resume: {self.path} does not exist or is empty")
        return Header(self.path, found)

    def append(self, records: Sequence[Any]) -> None:
        """Writes a batch of records; they are on disk when this returns."""
        self._write(list(records))

    def batches(self) -> Iterator[list[Any]]:
        """The records so far, as they were appended. What is torn at the end is cut off when all were read."""
        for batch in islice(self._lines(), 1, None):
            if not isinstance(batch, list):
                raise UserError(f"{self.path} holds something other than finished cells: remove it and start the sweep anew")
            yield batch

    def keep(self, pack: Sequence[Completion]) -> None:
        """Appends completions."""
        # As asdict, which copies every value and takes five times as long.
        self.append([{**vars(item), "cell": vars(item.cell)} for item in pack])

    def completions(self) -> Iterator[list[Completion]]:
        """What `keep` was given, pack by pack.

        Raises:
            UserError: if another version wrote it.
        """
        try:
            for batch in self.batches():
                yield [Completion(**{**record, "cell": Cell(**record["cell"])}) for record in batch]
        except (TypeError, KeyError):
            raise UserError(f"{self.path} holds cells of another version: remove it and start anew") from None

    def _write(self, payload: Any) -> None:
        text = json.dumps(payload, ensure_ascii=True, separators=(",", ":"))
        try:
            new = not self.path.exists()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write(f"{zlib.crc32(text.encode()):08x} {text}\n".encode())
                file.flush()
                os.fsync(file.fileno())
            if new:  # the file's own name, and its folder's, are on disk only when the folders above are
                sync_folder(self.path.parent)
                sync_folder(self.path.parent.parent)
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror}; what was finished before is kept: free some space, then resume"
            ) from None

    def _lines(self) -> Iterator[Any]:
        if not self.path.exists():
            return
        good = 0
        with self.path.open("rb") as file:
            for line in file:
                if (found := _payload(line)) is None:
                    break
                yield found
                good += len(line)
            else:
                return
            if line.endswith(b"\n") and file.read(1):
                raise UserError(f"{self.path} is damaged at byte {good}: remove it and start the sweep anew")
        with self.path.open("r+b") as file:
            file.truncate(good)


def _payload(line: bytes) -> Any:
    """What a line holds; None for one that is not whole."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != f"{zlib.crc32(text):08x}".encode():
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None

"""What is finished is on disk, and what is torn is cut, not read."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emo_mlflow.errors import UserError
from emo_mlflow.sweeping.spool import Spool
from emo_mlflow.types import Cell, Completion

HEADER = {"work": "abc", "given": {}}
BATCHES = [
    [{"cell": i, "text": "naïve\n☃", "nll": float("nan") if i == 2 else 0.1 + i} for i in range(k)] for k in (2, 1, 4)
]


def records(spool: Spool) -> list[Any]:
    """What is in it."""
    return [record for batch in spool.batches() for record in batch]


def filled(folder: Path) -> Spool:
    spool = Spool(folder)
    spool.begin(HEADER)
    for batch in BATCHES:
        spool.append(batch)
    return spool


def test_what_is_appended_is_read_back(tmp_path):
    spool = filled(tmp_path)
    assert repr(records(spool)) == repr([record for batch in BATCHES for record in batch])
    Spool(tmp_path).begin(HEADER)
    assert Spool(tmp_path).header() == HEADER and len(records(Spool(tmp_path))) == 7


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 1), st.booleans())
def test_a_torn_file_gives_its_whole_batches_and_goes_on(tmp_path, share, garbage):
    """A process killed at any byte of a write loses at most the batch in flight, and the file can be appended to."""
    (tmp_path / "cells.spool").unlink(missing_ok=True)
    spool = filled(tmp_path)
    raw = spool.path.read_bytes()
    lines = raw.splitlines(keepends=True)
    cut = len(lines[0]) + int(share * (len(raw) - len(lines[0])))
    spool.path.write_bytes(raw[:cut] + (b"\x00\xff" if garbage else b""))
    whole = max(k for k in range(1, len(lines) + 1) if sum(map(len, lines[:k])) <= cut) - 1
    expected = sum(len(batch) for batch in BATCHES[:whole])
    assert len(records(spool)) == expected
    spool.append([{"cell": "new"}])
    assert len(records(Spool(tmp_path))) == expected + 1


def test_damage_in_the_middle_is_not_cut_silently(tmp_path):
    """Only the last record can be torn; anything else is damage, and cells after it must not be lost unsaid."""
    spool = filled(tmp_path)
    raw = bytearray(spool.path.read_bytes())
    raw[raw.index(b"\n") + 20] ^= 1
    spool.path.write_bytes(raw)
    with pytest.raises(UserError, match="damaged at byte"):
        records(spool)


def test_other_work_is_refused(tmp_path):
    filled(tmp_path)
    with pytest.raises(UserError, match="other settings"):
        Spool(tmp_path).begin({**HEADER, "work": "xyz"})
    with pytest.raises(UserError, match="nothing to resume"):
        Spool(tmp_path / "absent").header()


def test_a_full_disk_is_a_clear_stop_that_keeps_what_was_finished(tmp_path, monkeypatch):
    spool = filled(tmp_path)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left"):
        spool.append([{"cell": "lost"}])
    monkeypatch.undo()
    assert len(records(Spool(tmp_path))) >= 7


def test_a_file_that_was_never_written_to_is_begun(tmp_path):
    """Killed between making the file and writing its first line, or in mid-line: that run could neither be resumed nor begun."""
    for torn in (b"", b"1234abcd {\"wo"):
        (tmp_path / "cells.spool").write_bytes(torn)
        Spool(tmp_path).begin(HEADER)
        assert Spool(tmp_path).header() == HEADER and records(Spool(tmp_path)) == []


def test_the_folder_is_synced_when_the_file_is_new(tmp_path, monkeypatch):
    """After a power cut a synced file can still be missing from its folder."""
    synced = []
    monkeypatch.setattr("emo_mlflow.sweeping.spool.sync_folder", synced.append)
    spool = filled(tmp_path / "spool" / "run")
    assert synced == [tmp_path / "spool" / "run", tmp_path / "spool"]
    spool.append([1])
    assert len(synced) == 2


def test_completions_come_back_pack_by_pack(tmp_path):
    """Guards: a traceback where another version wrote the texts of a study."""
    spool = Spool(tmp_path)
    spool.begin(HEADER)
    packs = [[Completion(Cell("c", prompt, 0), "x", 1, 2.5, 0.5, 1.0, 1, failure) for prompt in "ab"] for failure in (None, "no memory")]
    for pack in packs:
        spool.keep(pack)
    assert list(Spool(tmp_path).completions()) == packs
    spool.append([{"cell": {"condition_id": "c"}}])
    with pytest.raises(UserError, match="another version"):
        list(spool.completions())

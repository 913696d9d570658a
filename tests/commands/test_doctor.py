"""`emo-mlflow doctor`: what it says of a machine that works, and of one where everything is broken."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner
from huggingface_hub import constants

from emo_mlflow.cli.main import main
from emo_mlflow.commands import doctor
from emo_mlflow.commands.diagnosis import Check, Diagnosis, examine, lines_of
from emo_mlflow.common.deadline import within
from emo_mlflow.sweeping.spool import CELLS
from emo_mlflow.tracking.store import shown


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A working directory and a cache of its own, and a hub that nobody asks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EMO_MLFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


@contextmanager
def server(answers: dict[str, tuple[int, str]], silent: threading.Event | None = None):
    """A web server on a free port that has these paths, or that accepts and does not answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if silent is not None:
                silent.wait(20)
                return
            status, body = answers.get(self.path.partition("?")[0], (404, ""))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_HEAD = do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_address[1]}"
    finally:
        if silent is not None:
            silent.set()
        running.shutdown()
        running.server_close()


def look(check, *arguments) -> list[Diagnosis]:
    return list(examine([Check("it", lambda: check(*arguments))]))


def test_where_everything_works_it_says_so(place, monkeypatch):
    """Every check is one aligned line or more, the store is not made by looking at it, and the exit code is 0."""
    monkeypatch.setattr("emo_mlflow.models.embedded.is_converted", lambda: True)
    result = CliRunner().invoke(main, ["doctor", "--tracking-uri", f"sqlite:///{place}/new.db"])
    assert result.exit_code == 0, result.output
    assert "A default sweep can run here" in result.output and "FAIL" not in result.output
    lines = result.output.splitlines()[2:-2]
    names = [check.name for check in doctor.all_checks(None)]
    for name in names:
        assert any(line[8:].startswith(name) for line in lines), name
    column = 8 + max(map(len, names)) + 2
    assert all(line[column - 2 : column] == "  " and line[column] != " " for line in lines), result.output
    assert "emo_text (model_evaluator)" in result.output
    assert not (place / "new.db").exists()


def test_where_everything_is_broken_it_still_answers(place):
    """Libraries that do not import, a cache that cannot be written, no server: each is a line with what to do, and none a traceback."""
    for name in ("numpy", "torch", "onnxruntime"):
        (place / f"{name}.py").write_text(f"raise OSError('lib{name}.so.1: cannot open shared object file')")
    (place / "file").write_text("not a folder")
    environment = {
        **os.environ,
        "PYTHONPATH": str(place),
        "EMO_MLFLOW_CACHE": str(place / "file" / "cache"),
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "emo_mlflow.commands.doctor"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    for name in ("device", "cache", "scorer", "model", "mlflow store"):
        assert f"FAIL  {name}" in done.stdout, done.stdout
    assert "libtorch.so.1" in done.stdout and "ok    packages" in done.stdout and "to mend" in done.stdout


def test_a_version_that_is_too_old_is_named(monkeypatch):
    real = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: "4.0.1" if name == "transformers" else real(name))
    (found,) = look(doctor.packages)
    assert found.level == "FAIL" and "transformers>=4.57 (4.0.1 is installed)" in found.text
    assert found.advice == 'pip install "transformers>=4.57"'


def test_extras_are_told_apart(monkeypatch):
    """A requirement of an extra is no requirement of the package, and says which extra it belongs to."""
    real = doctor.version

    def without(name: str) -> str:
        if name == "optimum-onnx":
            raise doctor.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(doctor, "version", without)
    (found,) = look(doctor.packages)
    assert found.level == "ok"
    export = next(item for item in look(doctor.extras) if item.text.startswith("[export]"))
    assert export.level == "note" and "optimum-onnx" in export.text and export.advice == 'pip install "emo_mlflow[export]"'


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_may_not_be_written(place):
    (place / "cache").mkdir(mode=0o500)
    (found,) = look(doctor.cache)
    assert found.level == "FAIL" and "EMO_MLFLOW_CACHE" in found.advice


def test_a_full_disk(place, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: type("usage", (), {"free": 2**20}))
    (found,) = look(doctor.cache)
    assert found.level == "FAIL" and "a first sweep takes" in found.text and str(place / "cache") in found.text


def test_a_model_that_pip_cannot_fetch(monkeypatch):
    """Asked of pip itself, whose index is not there."""
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    (found,) = look(doctor.embedded_model)
    assert found.level == "FAIL" and "pip cannot fetch it" in found.text and "model=" in found.advice


def test_stores(place, monkeypatch):
    """Absent, out of date, no folder, a server that is down, one of another age, one that works."""
    assert look(doctor.store, "sqlite:///new.db")[0].level == "ok" and not Path("new.db").exists()
    assert look(doctor.store, "sqlite:////dev/null/folder/new.db")[0].level == "FAIL"
    with sqlite3.connect("old.db") as old:
        old.execute("create table alembic_version (version_num varchar(32))")
        old.execute("insert into alembic_version values ('0123456789ab')")
        old.execute("create table experiments (experiment_id integer)")
    (found,) = look(doctor.store, f"sqlite:///{place}/old.db")
    assert found.level == "FAIL", found
    (found,) = look(doctor.store, "http://127.0.0.1:9")
    assert found.level == "FAIL" and "does not answer" in found.text
    search = {"/api/2.0/mlflow/experiments/search": (200, '{"experiments": []}'), "/health": (200, "OK")}
    for theirs, level in ((mlflow.__version__, "ok"), ("1.30.0", "note")):
        with server({**search, "/version": (200, theirs)}) as url:
            found = look(doctor.store, url)
        assert [item.level for item in found] == ["ok", level] and theirs in found[1].text
    with server({"/health": (200, "OK"), "/api/2.0/mlflow/experiments/search": (401, "no")}) as url:
        (found,) = look(doctor.store, url)
    assert found.level == "FAIL" and "401" in found.text


def test_what_stopped_sweeps_left_in_the_cache_is_listed(place, monkeypatch):
    """Guards: a disk that fills with what nobody knows of; and a folder of another kind, taken for a sweep."""
    monkeypatch.setenv("EMO_MLFLOW_CACHE", str(place))
    assert [item.level for item in look(doctor.unfinished)] == ["ok"]
    for name in ("a" * 32, "b" * 32, "notes"):
        (place / "spool" / name).mkdir(parents=True)
        (place / "spool" / name / CELLS).write_bytes(b"x" * 2**20)
    (place / "spool" / ("b" * 32) / "record").mkdir()
    found = {item.text.split(",")[0]: item for item in look(doctor.unfinished)}
    assert set(found) == {"a" * 32, "b" * 32} and all(item.level == "note" and "1.0 MiB" in item.text for item in found.values())
    assert "not finished" in found["a" * 32].text and "--resume" in found["a" * 32].advice
    assert "not logged" in found["b" * 32].text and f"emo-mlflow upload {'b' * 32}" in found["b" * 32].advice


def test_a_password_is_not_shown():
    """Guards: a token without a name, a password that holds an @, and a path that looks like either."""
    assert shown("postgresql://me:se@cret@host/db") == "postgresql://***@host/db"
    assert shown("https://token@host") == "https://***@host"
    assert shown("sqlite:///a@b.db") == "sqlite:///a@b.db"


def test_hubs(monkeypatch):
    """Off, answering, refusing, gone, and silent: an answer within the limit, and never a failure."""
    assert "HF_HUB_OFFLINE" in look(doctor.hub)[0].text
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    (found,) = look(doctor.hub)
    assert found.level == "note" and "cannot be reached" in found.text
    with server({"": (200, ""), "/": (200, "")}) as url:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        assert look(doctor.hub)[0].level == "ok"
    with server({}) as url:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        assert "404" in look(doctor.hub)[0].text
    monkeypatch.setattr(doctor, "NETWORK_SECONDS", 0.3)
    with server({}, silent=threading.Event()) as url:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        start = time.monotonic()
        assert look(doctor.hub)[0].level == "note" and time.monotonic() - start < 5


def test_one_check_does_not_stop_the_next():
    def broken():
        yield Diagnosis("a", "ok", "half")
        raise RuntimeError("a\nb")

    checks = [
        Check("a", broken, advice="mend a"),
        Check("b", broken, needed=False),
        Check("c", lambda: [Diagnosis("c", "ok", "fine")]),
    ]
    found = list(examine(checks))
    assert [(item.name, item.level) for item in found] == [("a", "FAIL"), ("b", "note"), ("c", "ok")]
    assert (found[0].text, found[0].advice) == ("RuntimeError: a b", "mend a")


def test_what_waits_has_a_limit():
    assert within(5, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 // 0)
    with pytest.raises(TimeoutError, match=r"0\.05 seconds"):
        within(0.05, lambda: time.sleep(1))


def test_long_texts_are_wrapped_in_their_column():
    lines = lines_of(Diagnosis("cache", "FAIL", "word " * 40, "do this"), 6)
    assert lines[0].startswith("  FAIL  cache   word word") and lines[-1] == " " * 16 + "-> do this"
    assert all(len(line) <= 110 and line[16] != " " for line in lines)

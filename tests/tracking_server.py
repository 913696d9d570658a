"""A real `mlflow server` over HTTP, with proxied artifacts, as a remote reader has it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def tracking_server(folder: Path) -> Iterator[str]:
    """The address of a server that keeps its database and its artifacts in `folder`; stopped afterwards."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts")),
        "--serve-artifacts",
    ]
    log = (folder / "server.log").open("wb")
    server = subprocess.Popen(
        command, cwd=folder, env={**os.environ, "MLFLOW_TRACKING_URI": ""}, stdout=log, stderr=log
    )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait(server, address, folder / "server.log")
        yield address
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()
        log.close()


def _wait(server: subprocess.Popen[bytes], address: str, log: Path, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=10)
            return
        except OSError:
            time.sleep(0.3)
    raise RuntimeError(f"mlflow server did not start:\n{log.read_text(errors='replace')[-2000:]}")

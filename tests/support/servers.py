"""A real `mlflow server`, and a proxy before it that fails as networks and servers do."""

from __future__ import annotations

import http.client
import os
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Server:
    """`mlflow server` with SQLite and proxied artifacts, which can be stopped and started again on the same port and data."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, wait: bool = True) -> None:
        options = {
            "host": "127.0.0.1",
            "port": str(self.port),
            "workers": "1",
            "backend-store-uri": f"sqlite:///{self.folder}/mlflow.db",
            "artifacts-destination": str(self.folder / "artifacts"),
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        command = [sys.executable, "-m", "mlflow", "server", "--serve-artifacts", *words]
        environment = {**os.environ, "MLFLOW_TRACKING_URI": "", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=quiet, stderr=quiet, start_new_session=True)
        deadline = time.monotonic() + 120
        while wait and not self.answers():
            assert time.monotonic() < deadline and self._process.poll() is None, "the server does not start"
            time.sleep(0.2)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                return True
        except OSError:
            return False

    def stop(self) -> None:
        """Stops the server with all its workers, and waits."""
        assert self._process is not None
        os.killpg(self._process.pid, 15)
        self._process.wait()
        while self.answers():
            time.sleep(0.05)


@contextmanager
def running_server(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()


class Proxy:
    """Passes requests on to a server; `fault` says for each what goes wrong.

    A fault is None, a status to answer with instead of asking, `lost` (the server is asked, the answer thrown away), `away` (the connection
    is closed unanswered), or seconds to wait before passing on.
    """

    def __init__(self, target: Server) -> None:
        self.fault: Callable[[str, str], int | float | str | None] = lambda method, path: None
        self.faults = 0
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self._chunks() if self.headers.get("Transfer-Encoding") == "chunked" else self.rfile.read(length)
                fault = None if self.path == "/health" else proxy.fault(self.command, self.path)
                proxy.faults += fault is not None
                if fault == "away":
                    self.close_connection = True
                    return
                if isinstance(fault, int):
                    self._send(fault, b"the proxy says no", "text/html")
                    return
                if isinstance(fault, float):
                    time.sleep(fault)
                upstream = http.client.HTTPConnection("127.0.0.1", target.port, timeout=60)
                try:
                    dropped = ("host", "connection", "transfer-encoding", "content-length")
                    headers = {k: v for k, v in self.headers.items() if k.lower() not in dropped}
                    upstream.request(self.command, self.path, body, headers)
                    reply = upstream.getresponse()
                    content = reply.read()
                except OSError:
                    self._send(502, b"bad gateway", "text/html")
                    return
                finally:
                    upstream.close()
                if fault == "lost":
                    self.close_connection = True
                    return
                self._send(reply.status, content, reply.headers.get("Content-Type", "application/json"))

            def _send(self, status: int, content: bytes, kind: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def _chunks(self) -> bytes:
                found = b""
                while size := int(self.rfile.readline(), 16):
                    found += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return found

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

            def log_message(self, *args: object) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def now_and_then(seed: int) -> Callable[[str, str], int | float | str | None]:
    """Three of ten requests go wrong, each in one of the ways that a request can."""
    rng = random.Random(seed)
    return lambda method, path: rng.choice([503, 500, 502, "lost", "away", 0.2]) if rng.random() < 0.3 else None

"""A small server that speaks the OpenAI-compatible protocol: it answers by a rule, and fails as asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

RUBRIC = """
name: judge
instructions: How thankful is the text?
labels:
  gratitude: [0, 2]
  warmth: [-1, 1]
"""
Fault = Callable[[int], object]


def write_rubric(folder: Path, text: str = RUBRIC) -> Path:
    path = folder / "rubric.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def by_length(text: str) -> str:
    """An answer that depends on the text alone."""
    return f'Sure! {{"gratitude": {len(text) % 3}, "warmth": -0.5}}'


class JudgeServer:
    """Answers `/v1/chat/completions`. `fault` says of each request, counted from 0, what goes wrong: a status, `html`, `bad`, seconds, or None.

    Attributes:
        asked: texts that were asked about, in their order.
        requests: bodies of all requests.
    """

    def __init__(self, answer: Callable[[str], str] = by_length, fault: Fault = lambda i: None) -> None:
        self.answer, self.fault = answer, fault
        self.asked: list[str] = []
        self.requests: list[dict] = []
        self.headers: list[dict[str, str]] = []
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    fault = outer.fault(len(outer.requests))
                    outer.requests.append(body)
                    outer.headers.append(dict(self.headers))
                if isinstance(fault, float):
                    time.sleep(fault)
                if self.path != "/v1/chat/completions":
                    return self._send(404, b'{"error": "no such path"}')
                if fault == "html":
                    return self._send(200, b"<!doctype html><html>Welcome</html>", "text/html")
                if fault == "bad":
                    return self._send(200, b'{"object": "list"}')
                if isinstance(fault, int):
                    return self._send(fault, b'{"error": "busy"}')
                text = json.loads(body["messages"][-1]["content"])
                with outer._lock:
                    outer.asked.append(text)
                reply = {"choices": [{"message": {"role": "assistant", "content": outer.answer(text)}}]}
                return self._send(200, json.dumps(reply).encode())

            def _send(self, status: int, content: bytes, kind: str = "application/json") -> None:
                with suppress(OSError):  # who asked did not wait
                    self.send_response(status)
                    for name, value in (("Content-Type", kind), ("Content-Length", str(len(content))), ("Location", "http://elsewhere.example/")):
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(content)

            def log_message(self, *args: object) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def scorer(self, rubric: Path) -> str:
        return f"judge:{self.url}?model=tiny&rubric={rubric}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

"""A hub on this machine: enough of the Hugging Face hub's HTTP interface to find models and to download them."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants, file_download

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """What the server has. `requests` are the paths that were asked for; `silent` makes it accept and never answer.

    Attributes:
        folders: model folders by repository id; every revision in `revisions` holds the same files.
        gated: repositories that list themselves but may not be read.
    """

    folders: dict[str, Path]
    gated: set[str] = field(default_factory=set)
    revisions: tuple[str, ...] = ("main", "v2", COMMIT)
    parameters: int = 1000
    silent: threading.Event = field(default_factory=threading.Event)
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def files(self, repo: str) -> dict[str, Path]:
        """Files of a repository by their path in it."""
        folder = self.folders[repo]
        return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}


def _handler(hub: FakeHub, released: threading.Event) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            hub.requests.append(self.path)
            if hub.silent.is_set():
                released.wait()
                return
            path = self.path.partition("?")[0]
            if path.startswith("/api/models/"):
                self._api(path.removeprefix("/api/models/"))
            else:
                owner, name, _, revision, file = path.removeprefix("/").split("/", 4)
                self._file(f"{owner}/{name}", revision, file)

        def _api(self, rest: str) -> None:
            owner, name, *more = rest.split("/")
            repo = f"{owner}/{name}"
            if repo not in hub.folders:
                self._send(404, error="RepoNotFound")
            elif more == ["auth-check"]:
                self._send(403, error="GatedRepo") if repo in hub.gated else self._send(200, b"{}")
            elif more and more[0] == "revision" and more[1] not in hub.revisions:
                self._send(404, error="RevisionNotFound")
            elif more and more[0] == "tree":
                sizes = {file: path.stat().st_size for file, path in hub.files(repo).items()}
                self._json([{"type": "file", "path": f, "size": n, "oid": _etag(f, n)} for f, n in sizes.items()])
            else:
                self._json(
                    {
                        "id": repo,
                        "sha": COMMIT,
                        "gated": "auto" if repo in hub.gated else False,
                        "siblings": [{"rfilename": file} for file in hub.files(repo)],
                        "safetensors": {"parameters": {"F32": hub.parameters}, "total": hub.parameters},
                    }
                )

        def _file(self, repo: str, revision: str, file: str) -> None:
            if repo in hub.gated:
                return self._send(403, error="GatedRepo")
            if revision not in hub.revisions:
                return self._send(404, error="RevisionNotFound")
            if file not in hub.files(repo):
                return self._send(404, error="EntryNotFound")
            content = hub.files(repo)[file].read_bytes()
            return self._send(200, content, {"ETag": f'"{_etag(file, len(content))}"', "X-Repo-Commit": COMMIT})

        def _json(self, payload: object) -> None:
            self._send(200, json.dumps(payload).encode())

        def _send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None, error: str = "") -> None:
            self.send_response(status)
            named = {**({"X-Error-Code": error} if error else {}), **(headers or {}), "Content-Length": str(len(body))}
            for name, value in named.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


def _etag(file: str, size: int) -> str:
    return hashlib.sha256(f"{file} {size}".encode()).hexdigest()


@contextmanager
def serve(hub: FakeHub) -> Iterator[FakeHub]:
    """Runs the hub on a free port of this machine."""
    released = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub, released))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        released.set()
        server.shutdown()
        server.server_close()


def point_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the hub's client ask the server at `url`."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (constants, file_download):  # the second has a copy in hub clients before 1.0
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)

"""Hub models against a hub on this machine: found, refused, downloaded, and used from the cache when it is gone."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fake_hub import COMMIT, FakeHub, point_at, serve
from huggingface_hub import constants
from tiny_models import save_tiny

from emo_mlflow.errors import UserError
from emo_mlflow.models import hub as hub_module
from emo_mlflow.models.hub import check_hub, hub_folder
from emo_mlflow.models.loading import check, load
from emo_mlflow.models.names import ModelSpec

CPU = torch.device("cpu")
REPO = "owner/tiny"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = save_tiny(tmp_path_factory.mktemp("source") / "tiny", "gpt2", n_layers=2, d_model=16)
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    return folder


@pytest.fixture
def hub(source, tmp_path, monkeypatch) -> Iterator[FakeHub]:
    (tmp_path / "pickles").mkdir()
    (tmp_path / "pickles" / "pytorch_model.bin").touch()
    folders = {REPO: source, "owner/gated": source, "owner/pickles": tmp_path / "pickles"}
    with serve(FakeHub(folders, gated={"owner/gated"})) as running:
        point_at(running.url, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield running


def test_a_hub_model_is_downloaded_and_loaded(hub, source):
    """Only what is needed comes down: no pickles, no other frameworks; what was loaded is known by its commit."""
    spec = ModelSpec(REPO, "hub", REPO, None)
    check(spec)
    assert not any("/resolve/" in path for path in hub.requests)
    loaded = load(spec, CPU, torch.float32)
    assert loaded.spec.revision == COMMIT
    assert loaded.fingerprint == load(ModelSpec("x", "folder", str(source)), CPU, torch.float32).fingerprint
    assert not any("pytorch_model" in path or "onnx" in path for path in hub.requests)


def test_the_cache_is_enough_when_the_hub_is_gone(hub, monkeypatch):
    """A cached model works without a network, at the revision asked for, and without half a minute of retries."""
    hub_folder(REPO, None)
    point_at("http://127.0.0.1:9", monkeypatch)
    start = time.monotonic()
    loaded = load(ModelSpec(REPO, "hub", REPO), CPU, torch.float32)
    assert check_hub(REPO, None) == loaded.model.num_parameters()
    with pytest.raises(UserError, match="not in the hub's cache, and the hub cannot be reached"):
        check_hub(REPO, "v2")
    assert time.monotonic() - start < 10


def test_no_hub_is_said_within_ten_seconds(hub):
    """A hub that accepts connections and never answers (a firewall, a captive portal) must not hang the run."""
    hub.silent.set()
    start = time.monotonic()
    with pytest.raises(UserError, match=r"choose smollm2-135m .*, a hub id .*, a local folder, or a \.gguf file"):
        check(ModelSpec(REPO, "hub", REPO))
    assert time.monotonic() - start < 10


def test_a_hub_that_hangs_before_any_timeout(monkeypatch):
    """Name resolution ignores the request's time limit: the deadline must hold all the same."""
    monkeypatch.setattr(hub_module, "DEADLINE_SECONDS", 0.3)
    resolved = threading.Event()
    monkeypatch.setattr(hub_module.HfApi, "model_info", lambda *args, **kwargs: resolved.wait(60))
    start = time.monotonic()
    with pytest.raises(UserError, match="did not answer"):
        check_hub("nobody/nothing", None)
    assert time.monotonic() - start < 30
    resolved.set()


@pytest.mark.parametrize(
    ("repo", "revision", "message"),
    [
        ("owner/unknown", None, "has no model 'owner/unknown'"),
        (REPO, "v99", "no revision 'v99'"),
        ("owner/gated", None, "gated: accept its licence"),
        ("owner/pickles", None, "only safetensors"),
        ("owner/a--b", None, "not a hub id"),
    ],
)
def test_what_the_hub_refuses(hub, repo, revision, message):
    """Each refusal says what to do, before anything is downloaded."""
    with pytest.raises(UserError, match=message):
        check_hub(repo, revision)
    assert not any("/resolve/" in path for path in hub.requests)


def test_memory_is_checked_before_the_download(hub):
    """An 8B model on a laptop: refused by the hub's own count of parameters, not after 16 GB of download."""
    hub.parameters = 10**13
    with pytest.raises(UserError, match=r"needs about .* GiB of memory"):
        check(ModelSpec(REPO, "hub", REPO))
    assert not any("/resolve/" in path for path in hub.requests)


def test_a_download_that_breaks_off(hub, monkeypatch):
    """The connection ends half-way: one line that says so, whichever HTTP library noticed it."""

    def broken(*args: object, **kwargs: object) -> None:
        raise ConnectionResetError("reset by peer")

    monkeypatch.setattr(hub_module, "snapshot_download", broken)
    with pytest.raises(UserError, match=r"broke off: .*reset by peer"):
        hub_folder(REPO, None)


def test_revisions_are_passed_on(hub):
    """A pinned revision must not silently become main."""
    hub_folder(REPO, "v2")
    assert any("/revision/v2" in path for path in hub.requests)
    assert not any("/revision/main" in path for path in hub.requests)


def test_offline_mode_is_respected(hub, tmp_path):
    """HF_HUB_OFFLINE: no request is made, and what is not in the cache is refused with that reason."""
    code = "import sys; from emo_mlflow.models.hub import check_hub; check_hub('owner/tiny', None)"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "UserError: owner/tiny is not in the hub's cache, and HF_HUB_OFFLINE is set" in done.stderr
    assert hub.requests == []

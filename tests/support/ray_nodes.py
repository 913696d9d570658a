"""A real Ray of two nodes on this machine, and what of it is still running."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from servers import free_port

STORE_BYTES = 100 * 2**20
PATIENCE = 600.0  # until a hang is called one, on two cores that others use too


@dataclass(frozen=True)
class Second:
    """The node beside the head: it can be killed, and another one can take its place."""

    cluster: Any
    options: Mapping[str, Any]
    nodes: list[Any]

    def kill(self) -> None:
        """Its raylet and all of its workers, at once."""
        self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)

    def join(self) -> None:
        """A node joins the cluster."""
        self.nodes.append(self.cluster.add_node(**self.options))


@contextmanager
def two_nodes(dashboard: bool = False) -> Iterator[tuple[str, str]]:
    """Starts a head and one more node of one CPU each, and yields the addresses of the cluster and of its dashboard."""
    with mortal_node(dashboard) as (address, url, _):
        yield address, url


@contextmanager
def mortal_node(dashboard: bool = False) -> Iterator[tuple[str, str, Second]]:
    """The same, and what kills the second node.

    The nodes' processes die with this one, whatever ends it; at the end of the block there is none left.
    """
    from ray.cluster_utils import Cluster

    before = {process.pid for process in psutil.Process().children(recursive=True)}
    port = _dashboard_port()
    node = {"num_cpus": 1, "object_store_memory": STORE_BYTES}
    options = {"include_dashboard": dashboard, "dashboard_port": port, "dashboard_host": "127.0.0.1"}
    with _folder_of_ray():
        cluster = Cluster(initialize_head=True, head_node_args={**node, **options})
        try:
            second = Second(cluster, node, [])
            second.join()
            yield cluster.address, f"http://127.0.0.1:{port}", second
        finally:
            cluster.shutdown()
            left = [process for process in psutil.Process().children(recursive=True) if process.pid not in before]
            _, alive = psutil.wait_procs(left, timeout=30)
            for process in alive:
                process.kill()
    assert not alive, [process.cmdline() for process in alive]


@contextmanager
def _folder_of_ray() -> Iterator[None]:
    """A default folder of Ray's own for this process and its children, gone at the end.

    `Cluster` writes its address into the default folder, whatever folder its nodes have: one that may not exist yet, or hold
    the address of a cluster that somebody works with.
    """
    folder = tempfile.mkdtemp(prefix="emo-ray-", dir="/tmp")  # pytest's own folders make too long names for sockets
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_TMPDIR", folder)
            yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def environment(folder: Path) -> dict[str, str]:
    """Variables for a test's nodes and commands: its own cache, this interpreter's commands first, no token in the home folder."""
    return {
        "EMO_MLFLOW_CACHE": str(folder / "cache"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "disabled",
        "RAY_BACKEND_LOG_LEVEL": "fatal",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def actors(stage: str) -> list[psutil.Process]:
    """The processes of a stage's actors in this process's cluster."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if any("ray::" in word and stage in word for word in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def until(holds: Callable[[], bool], what: str) -> None:
    """Waits until something holds."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, f"{what}: not within {PATIENCE:.0f} s"
        time.sleep(0.02)


def _dashboard_port() -> int:
    """Ray does not start if its dashboard gets the port that the dashboard's agent takes."""
    from ray._private.ray_constants import DEFAULT_DASHBOARD_AGENT_LISTEN_PORT

    port = free_port()
    return _dashboard_port() if port == DEFAULT_DASHBOARD_AGENT_LISTEN_PORT else port

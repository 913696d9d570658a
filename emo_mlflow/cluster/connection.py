"""Connecting to a Ray cluster, and what of it a sweep may use. Ray is imported where it is used: nobody else needs it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from emo_mlflow.errors import UserError, reason_of

CONNECT_SECONDS = 8.0


def check_ray(address: str) -> None:
    """Asks whether Ray is installed and the cluster is there, within ten seconds; Ray itself would try for two minutes.

    Args:
        address: `local`, or host:port of the cluster's head.

    Raises:
        UserError: if not.
    """
    if find_spec("ray") is None or find_spec("grpc") is None:
        raise UserError(
            "engine=ray needs Ray, which is not installed: pip install 'emo_mlflow[ray]', or use engine=local"
        )
    import grpc

    target = _cluster(address)
    if target == "local" or os.environ.get("RAY_USE_TLS") == "1":
        return
    with grpc.insecure_channel(target) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=CONNECT_SECONDS)
        except grpc.FutureTimeoutError:
            raise UserError(
                f"no Ray cluster answers at {target}: start one (`ray start --head` prints its address), "
                "correct ray_address, or leave it out for a cluster of this machine alone"
            ) from None


def _cluster(address: str) -> str:
    """Where to connect: `local` is the cluster of the Ray job that this process is part of, if it is part of one."""
    return os.environ.get("RAY_ADDRESS", "local") if address == "local" else address


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Connects to a cluster, or starts one of this machine that ends with the block; a connection that there is already is used as it is.

    Raises:
        UserError: if the cluster does not take this process, such as for another version of Ray or Python, or what comes back is
            a user's mistake or a cluster that failed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody asked to send statistics anywhere
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray's own processes write to the terminal otherwise
    import ray
    import ray.data
    from ray.exceptions import RayError, RayTaskError

    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # it prints the traceback of what is raised below
    ours = not ray.is_initialized()
    try:
        if ours:
            _connect(_cluster(address))
        yield
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause).partition("\n")[0]) from None  # Ray adds lines about its settings
        raise
    except RayError as error:
        raise UserError(
            f"the Ray cluster failed: {reason_of(error)}; what was finished is kept: resume the run"
        ) from None
    finally:
        if ours:
            ray.shutdown()


def _connect(cluster: str) -> None:
    import ray

    try:
        dashboard = False if cluster == "local" else None  # None: as the cluster has it
        ray.init(cluster, include_dashboard=dashboard, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"cannot use the Ray cluster at {cluster}: {reason_of(error)}") from None


@dataclass(frozen=True)
class Pools:
    """The actors of the two stages.

    Attributes:
        device: what a generation actor runs on, `cuda` or `cpu`.
        generators, scorers: how many actors there may be.
        reserved: what one generation actor reserves, `num_gpus` or `num_cpus`.
        scorer_cpus: what one scoring actor reserves.
    """

    device: str
    generators: int
    reserved: Mapping[str, Any]
    scorers: int
    scorer_cpus: float


def make_pools(nodes: Sequence[Mapping[str, float]], device: str) -> Pools:
    """A generation actor per GPU, and scoring on the CPUs; without GPUs, a generation actor per node with nearly all its CPUs.

    Args:
        nodes: the resources of every node, as Ray names them.
        device: as the sweep's settings have it.

    Raises:
        UserError: if the cluster has not what `device` asks for.
    """
    gpus = int(sum(int(node.get("GPU", 0)) for node in nodes))
    cpus = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    if not cpus:
        raise UserError("the Ray cluster has no CPU to score on: start its nodes with --num-cpus")
    if device.startswith("cuda") and not gpus:
        raise UserError(f"device={device}: the Ray cluster has no GPU; use device=auto or cpu, or add a node with GPUs")
    if gpus and not device.startswith(("cpu", "mps")):
        # No CPU is reserved beside a GPU, or a cluster with as many of each would have none to score on.
        return Pools("cuda", gpus, {"num_gpus": 1, "num_cpus": 0}, max(1, sum(cpus) - gpus), 1)
    least = min(cpus)
    per_scorer = 1.0 if least > 1 else 0.25
    n = sum(count // least for count in cpus)
    return Pools("mps" if device == "mps" else "cpu", n, {"num_cpus": least - per_scorer}, n, per_scorer)

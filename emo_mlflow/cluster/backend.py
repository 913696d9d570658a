"""`mlflow run --backend emo-ray`: a whole run as a job of a Ray cluster.

The job runs `mlflow run` in the project's folder as the cluster unpacked it, on the run that was made here, so that its parameters, status
and end are MLflow's own. MLflow imports this module only when the backend is asked for.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import shlex
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from mlflow import MlflowClient
from mlflow.exceptions import ExecutionException
from mlflow.projects.backend.abstract_backend import AbstractBackend
from mlflow.projects.submitted_run import SubmittedRun
from mlflow.projects.utils import (
    PROJECT_BUILD_IMAGE,
    PROJECT_DOCKER_ARGS,
    PROJECT_DOCKER_AUTH,
    PROJECT_ENV_MANAGER,
    PROJECT_STORAGE_DIR,
    PROJECT_SYNCHRONOUS,
    fetch_and_validate_project,
    get_or_create_run,
)

from emo_mlflow.errors import UserError, reason_of
from emo_mlflow.tracking.lifecycle import FAILURE
from emo_mlflow.tracking.store import lasting_store

CONNECT_SECONDS = 8.0
POLL_SECONDS = 1.0
PATIENCE_SECONDS = 600.0  # how long `wait` bears a job server that does not answer
JOB, CLUSTER = "emo.ray_job", "emo.ray_address"
STATUS = {"PENDING": "SCHEDULED", "RUNNING": "RUNNING", "STOPPED": "KILLED", "SUCCEEDED": "FINISHED", "FAILED": "FAILED"}

_OF_MLFLOW = {
    PROJECT_BUILD_IMAGE,
    PROJECT_DOCKER_ARGS,
    PROJECT_DOCKER_AUTH,
    PROJECT_ENV_MANAGER,
    PROJECT_STORAGE_DIR,
    PROJECT_SYNCHRONOUS,
}
_NUMBERS = ("entrypoint_num_cpus", "entrypoint_num_gpus", "entrypoint_memory")
_MAPPINGS = ("runtime_env", "entrypoint_resources")
_log = logging.getLogger("mlflow.projects.emo_ray")  # below MLflow's own, so that it is shown as MLflow's messages are


@dataclass(frozen=True)
class Cluster:
    """What cluster.json says.

    Attributes:
        address: of the cluster's dashboard and job server, http(s)://HOST:8265.
        runtime_env: as Ray has it; its working_dir is the project's folder unless given.
        resources: what the job's own process reserves, as `JobSubmissionClient.submit_job` names it.
    """

    address: str
    runtime_env: Mapping[str, Any]
    resources: Mapping[str, Any]


def read_cluster(config: Mapping[str, Any]) -> Cluster:
    """Checks what was given as --backend-config.

    Raises:
        UserError: for a key that there is not, or a value that it cannot have.
    """
    given = {name: value for name, value in config.items() if name not in _OF_MLFLOW}
    known = ("address", *_NUMBERS, *_MAPPINGS)
    if unknown := sorted(set(given) - set(known)):
        raise UserError(f"cluster.json: unknown key {unknown[0]!r}: there are {', '.join(known)}")
    address = given.get("address")
    parts = urlsplit(address) if isinstance(address, str) else None
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(
            f"cluster.json: address={address!r} is not that of a Ray cluster's dashboard, such as http://10.0.0.1:8265; "
            "give --backend-config cluster.json"
        )
    for name in _NUMBERS:
        value = given.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise UserError(f"cluster.json: {name}={value!r} is not a number of at least 0")
    for name in _MAPPINGS:
        if not isinstance(given.get(name, {}), dict):
            raise UserError(f"cluster.json: {name}={given[name]!r} is not an object of names and values")
    resources = {name: given[name] for name in (*_NUMBERS, "entrypoint_resources") if name in given}
    return Cluster(str(address).rstrip("/"), given.get("runtime_env", {}), resources)


def connect(address: str) -> Any:
    """A client of the cluster's job server, within ten seconds.

    Raises:
        UserError: if Ray is not installed, or the server does not answer or does not take this client.
    """
    try:
        from ray.job_submission import JobSubmissionClient
    except ImportError:
        raise UserError("the backend emo-ray needs Ray, which is not installed: pip install 'emo_mlflow[ray]'") from None
    for variable in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        if os.environ.get(variable, address).rstrip("/") != address:
            raise UserError(f"{variable} is set to {os.environ[variable]}, which Ray would use instead of {address}: unset it")
    try:
        urllib.request.urlopen(f"{address}/api/version", timeout=CONNECT_SECONDS).close()
    except urllib.error.HTTPError:
        pass  # it answers; Ray's client says more about how
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"no Ray job server answers at {address} ({reason}): start the cluster (`ray start --head`) or correct cluster.json"
        ) from None
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"the Ray job server at {address} refuses: {reason_of(error)}") from None


def store_for_job(tracking_uri: str, address: str) -> str:
    """The tracking store as the job is to find it.

    Raises:
        UserError: if it is a file of this machine, and the cluster another.
    """
    if urlsplit(tracking_uri).scheme not in ("", "file", "sqlite"):
        return tracking_uri
    if not _is_here(urlsplit(address).hostname or ""):
        raise UserError(
            f"the tracking store {tracking_uri} is a file of this machine, which the cluster at {address} cannot reach: start a "
            "server (`mlflow server`) and set MLFLOW_TRACKING_URI to it"
        )
    return lasting_store(tracking_uri)


def _is_here(host: str) -> bool:
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    own = {address.address for addresses in psutil.net_if_addrs().values() for address in addresses}
    return all(address in own or ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in found)


class RayBackend(AbstractBackend):
    """What MLflow calls for `--backend emo-ray`."""

    def run(
        self,
        project_uri: str,
        entry_point: str,
        params: Mapping[str, str],
        version: str | None,
        backend_config: Mapping[str, Any],
        tracking_uri: str,
        experiment_id: str,
    ) -> RaySubmittedRun:
        """Submits the project's entry point and returns at once.

        Raises:
            ExecutionException: for anything that the user can mend; MLflow prints it as one line.
        """
        try:
            cluster = read_cluster(backend_config)
            store = store_for_job(tracking_uri, cluster.address)
            client = connect(cluster.address)
        except UserError as error:
            raise ExecutionException(str(error)) from None
        folder = fetch_and_validate_project(project_uri, version, entry_point, params)
        run_id = get_or_create_run(None, project_uri, experiment_id, folder, version, entry_point, params).info.run_id
        words = ["python", "-m", "mlflow", "run", ".", "--entry-point", entry_point, "--run-id", run_id]
        words += ["--experiment-id", str(experiment_id), "--env-manager", backend_config.get(PROJECT_ENV_MANAGER) or "local"]
        for name, value in (params or {}).items():
            words += ["-P", f"{name}={value}"]
        variables = {"MLFLOW_TRACKING_URI": store, **cluster.runtime_env.get("env_vars", {})}
        excluded = [*cluster.runtime_env.get("excludes", []), *links_upwards(Path(folder))]
        job = f"emo-{run_id}"
        tracking = MlflowClient(tracking_uri)
        try:
            client.submit_job(
                entrypoint=shlex.join(words),
                submission_id=job,
                runtime_env={"working_dir": folder, **cluster.runtime_env, "excludes": excluded, "env_vars": variables},
                metadata={"mlflow_run_id": run_id},
                **cluster.resources,
            )
        except (ConnectionError, RuntimeError, ValueError, TypeError, OSError) as error:
            reason = f"the Ray cluster at {cluster.address} does not take the job: {reason_of(error)}"
            tracking.set_tag(run_id, FAILURE, reason)
            tracking.set_terminated(run_id, "FAILED")
            raise ExecutionException(reason) from None
        tracking.set_tag(run_id, JOB, job)
        tracking.set_tag(run_id, CLUSTER, cluster.address)
        _log.info("=== Run %s is Ray job %s; follow it: ray job logs --address %s --follow %s ===", run_id, job, cluster.address, job)
        return RaySubmittedRun(client, job, run_id, tracking)


def links_upwards(folder: Path) -> list[str]:
    """What in a project's folder is a link to a folder that it is in itself: who follows it never comes to an end."""
    place = folder.resolve()
    return [f"/{path.name}" for path in sorted(folder.iterdir()) if path.is_symlink() and place.is_relative_to(path.resolve())]


class RaySubmittedRun(SubmittedRun):
    """A Ray job that does an MLflow run."""

    def __init__(self, client: Any, job: str, run_id: str, tracking: MlflowClient) -> None:
        self._client = client
        self._job = job
        self._run_id = run_id
        self._tracking = tracking

    @property
    def run_id(self) -> str:
        """The MLflow run's id."""
        return self._run_id

    def get_status(self) -> str:
        """The job's state as one of MLflow's run statuses."""
        return STATUS[str(self._client.get_job_status(self._job))]

    def wait(self) -> bool:
        """Waits for the job's end, and says whether it succeeded; Ray's message, with the end of the job's output, is logged if it did not."""
        status = self._await_end()
        if status == "FAILED":
            _log.error("Ray job %s failed: %s", self._job, self._client.get_job_info(self._job).message)
        return status == "FINISHED"

    def cancel(self) -> None:
        """Stops the job, waits for its end, and marks the run as KILLED; a job that has ended is left as it is."""
        if self.get_status() in ("SCHEDULED", "RUNNING"):
            self._client.stop_job(self._job)
            if self._await_end() == "KILLED":
                self._tracking.set_terminated(self._run_id, "KILLED")

    def _await_end(self) -> str:
        answered = time.monotonic()
        while True:
            try:
                status = self.get_status()
                answered = time.monotonic()
            except (ConnectionError, RuntimeError, OSError):
                if time.monotonic() - answered > PATIENCE_SECONDS:
                    raise
                status = "unknown"
            if status in ("KILLED", "FINISHED", "FAILED"):
                return status
            time.sleep(POLL_SECONDS)

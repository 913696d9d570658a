"""A sweep's record into MLflow, so that it arrives once and whole however often the store fails or the process dies on the way.

Every step can be done again: params keep their value, metrics keep their time, artifacts replace themselves, and a child is looked for by its
condition before it is made again. The run is FINISHED only when everything else is there.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS, MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

from emo_mlflow.tracking.answers import answer_tags, show_answers
from emo_mlflow.tracking.lifecycle import FAILURE, KIND
from emo_mlflow.tracking.record import ARTIFACTS, Child, Record
from emo_mlflow.tracking.retries import Retry
from emo_mlflow.tracking.values import Values, log_values

CONDITION, CHILDREN = "emo.condition_id", "emo.children"
PAGE = 1000
SERVER_THREADS = 4  # a server answers several requests at once; a database in this process does not
ROUNDS = 3


class Upload:
    """What is logged to one sweep's run. Several threads may use it, one after another.

    Args:
        fresh: whether the run was just made, so that it has no children yet.
    """

    def __init__(self, client: MlflowClient, run: Run, retry: Retry, fresh: bool) -> None:
        self.client = client
        self.run_id: str = run.info.run_id
        self.experiment_id: str = run.info.experiment_id
        self._first_params = dict(run.data.params)  # params do not change: they say what the run was started with
        self.retry = retry
        self._tags: Mapping[str, str] | None = None
        self._known: dict[str, str] = {}  # run ids by condition
        self._has_params: set[str] = set()  # run ids of children that an earlier attempt gave them
        self._finished: set[str] = set()
        self._certain = fresh  # whether `_known` is all that the store has
        self._lock = threading.Lock()

    def announce(self, params: Mapping[str, str], children: Sequence[Child]) -> None:
        """Logs a sweep's settings and makes its children, before there is anything to measure."""
        self._log_own_params(params)
        if not self._certain:
            self.retry(self._look)
        self._each(self._make, children)

    def publish(self, record: Record, folder: Path, on_progress: Callable[[int, int], None]) -> None:
        """Logs everything and ends the run as FINISHED.

        Args:
            folder: holds the record's artifacts.
            on_progress: called with what has arrived and what there is, in children and files.

        Raises:
            MlflowException, OSError: if the store stays away, or refuses.
        """
        files = sorted(path for path in (folder / ARTIFACTS).rglob("*") if path.is_file() and not path.is_symlink())
        total = len(record.children) + len(files)
        self._log_own_params(record.params)
        log_values(self.client, self.run_id, metrics=record.metrics, timestamp=record.timestamp, send=self.retry)
        if record.no_children:
            self._tag(CHILDREN, record.no_children)
        self._publish_children(record, lambda done: on_progress(done, total))
        for i, path in enumerate(files):
            self._log_artifact(path, folder / ARTIFACTS)
            on_progress(len(record.children) + i + 1, total)
        shown = {MLFLOW_RUN_NOTE: record.note, MLFLOW_LOGGED_ARTIFACTS: json.dumps([{"path": "examples.json", "type": "table"}])}
        log_values(self.client, self.run_id, tags={**shown, **answer_tags(record.answers)}, send=self.retry)
        show_answers(self.client, self.experiment_id, record.answers)
        self.retry(self._forget_failure)
        self.retry(lambda: self.client.set_terminated(self.run_id, "FINISHED"))

    def stop_children(self, status: str) -> None:
        """Ends the children that were made for measurements which will not come; what the store does not take is left."""
        for condition_id, run_id in tuple(self._known.items()):
            if condition_id not in self._finished:
                self.client.set_terminated(run_id, status)

    def log_progress(self, values: Values, timestamp: int) -> None:
        """Logs metrics once, without trying again."""
        log_values(self.client, self.run_id, metrics=values, timestamp=timestamp)

    def _publish_children(self, record: Record, on_progress: Callable[[int], None]) -> None:
        for _ in range(ROUNDS):
            if not self._certain:
                self.retry(self._look)
            waiting = [child for child in record.children if child.condition_id not in self._finished]
            on_progress(len(record.children) - len(waiting))
            self._each(lambda child: self._finish(child, record.timestamp), waiting)
            if self._certain:
                return
        raise MlflowException(f"the store keeps losing children of run {self.run_id}")

    def _each(self, do: Callable[[Child], object], children: Sequence[Child]) -> None:
        """Does something for every child, until a failure, or until it is stopped."""

        def one(child: Child) -> None:
            if not self.retry.stop.is_set():
                do(child)

        n_threads = SERVER_THREADS if self.client.tracking_uri.startswith("http") else 1
        with ThreadPoolExecutor(n_threads) as pool:
            try:
                for future in as_completed([pool.submit(one, child) for child in children]):
                    future.result()
            except BaseException:
                self.retry.stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _look(self) -> None:
        """Learns which children the store has; of two for one condition, made by a request whose answer was lost, one is deleted."""
        self._known.clear()
        self._finished.clear()
        for run in self._search(f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{self.run_id}'"):
            condition_id = run.data.tags.get(CONDITION)
            if condition_id is None:
                continue
            if condition_id in self._known:
                self.client.delete_run(run.info.run_id)
                continue
            self._known[condition_id] = run.info.run_id
            if run.data.params:
                self._has_params.add(run.info.run_id)
            if run.info.status == "FINISHED":
                self._finished.add(condition_id)
        self._certain = True

    def _search(self, filter_string: str) -> Iterator[Run]:
        """Runs of the experiment, the finished ones first."""
        token: str | None = None
        while True:
            order = ["attributes.status ASC", "attributes.start_time ASC"]
            page = self.client.search_runs([self.experiment_id], filter_string, order_by=order, max_results=PAGE, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def _make(self, child: Child) -> str:
        """The id of a child's run, which is made if there is none."""
        run_id = self._known.get(child.condition_id)
        if run_id is None:
            tags = {**self._context(), MLFLOW_PARENT_RUN_ID: self.run_id, KIND: "condition", CONDITION: child.condition_id}
            attempts = 0

            def create() -> str:
                nonlocal attempts
                attempts += 1
                if attempts > 1 and (found := self._find(child.condition_id)):
                    return found
                return str(self.client.create_run(self.experiment_id, tags=tags, run_name=child.name).info.run_id)

            try:
                run_id = self.retry(create)
            finally:
                if attempts > 1:
                    self._certain = False
            self._known[child.condition_id] = run_id
        return run_id

    def _find(self, condition_id: str) -> str | None:
        own = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{self.run_id}' and tags.`{CONDITION}` = '{condition_id}'"
        return next((str(run.info.run_id) for run in self._search(own)), None)

    def _finish(self, child: Child, timestamp: int) -> None:
        run_id = self._make(child)
        params = {} if run_id in self._has_params else child.params  # which do not change, whatever it was resumed with
        log_values(self.client, run_id, params=params, metrics=child.metrics, timestamp=timestamp, send=self.retry)
        self.retry(lambda: self.client.set_terminated(run_id, "FINISHED"))
        self._finished.add(child.condition_id)

    def _context(self) -> Mapping[str, str]:
        """MLflow's own tags for a new run: user, source, commit."""
        with self._lock:
            if self._tags is None:
                self._tags = resolve_tags()
            return self._tags

    def _log_own_params(self, params: Mapping[str, str]) -> None:
        """Those that the run does not have: `resume` or `device` may be others than when it was started."""
        new = {name: value for name, value in params.items() if name not in self._first_params}
        log_values(self.client, self.run_id, params=new, send=self.retry)
        self._first_params.update(params)

    def _log_artifact(self, path: Path, root: Path) -> None:
        inside = path.parent.relative_to(root).as_posix()
        self.retry(lambda: self.client.log_artifact(self.run_id, str(path), None if inside == "." else inside))

    def _tag(self, key: str, value: str) -> None:
        self.retry(lambda: self.client.set_tag(self.run_id, key, value))

    def _forget_failure(self) -> None:
        """Takes the reason off of why an earlier attempt ended."""
        if FAILURE in self.client.get_run(self.run_id).data.tags:
            self.client.delete_tag(self.run_id, FAILURE)

"""MLflow, without MLflow in the training process.

The run writes its own files; a second process (`sender`) reads them and talks to the store. Importing MLflow, a slow store or one that is
away therefore cost training nothing, not even the interpreter lock, and what was missed is sent later: when the store is back, at the end,
at the next resume, or by ``posttrain sync run=DIR``.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, SupportsFloat

import posttrain
from posttrain.runs.files import write_atomic, writing
from posttrain.runs.forking.client import Process, end, start
from posttrain.runs.records import Status, read_result
from posttrain.runs.tracking.base import RunInfo, git_state
from posttrain.runs.tracking.journal import Journal, count_starts, last_start
from posttrain.runs.tracking.naming import flatten
from posttrain.runs.tracking.uris import redacted, resolve_uri, ui_hint

CLIENT_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the sender itself tries again, without holding anybody up
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
NOTICE_SECONDS = 10.0
log = logging.getLogger(__name__)


class MLflowTracker:
    """Records a run in an MLflow store.

    uri: store address (see `resolve_uri`); null = $MLFLOW_TRACKING_URI, else a SQLite database outputs/mlflow.db in the launch folder;
    a resumed run then stays in the store it began in.
    experiment: MLflow experiment. parent_run_id: parent of a sweep or a pipeline. tags: stage, arm ..., without their prefix.
    run_name: null = the folder's.
    system_seconds: period of the machine metrics, null = none.
    finish_seconds: at the end of a run, wait at most that long for the store.
    """

    def __init__(
        self,
        *,
        uri: str | None = None,
        experiment: str = "posttrain",
        parent_run_id: str | None = None,
        tags: dict[str, Any] | None = None,
        run_name: str | None = None,
        system_seconds: float | None = 10.0,
        finish_seconds: float = 60.0,
    ):
        self.uri = resolve_uri(uri, Path.cwd())
        self._uri_given = uri is not None
        self.experiment = experiment
        self.parent_run_id = parent_run_id
        self.tags = tags or {}
        self.run_name = run_name
        self.system_seconds = system_seconds
        self.finish_seconds = finish_seconds
        self._journal: Journal | None = None
        self._sender: Process | None = None
        self._next_notice = 0.0
        self._problem: str | None = None

    @property
    def journal(self) -> Journal:
        """The local record. Raises RuntimeError before `start`."""
        if self._journal is None:
            raise RuntimeError("the tracker was not started")
        return self._journal

    @property
    def run_id(self) -> str | None:
        """The MLflow run id; None until the store was reached once."""
        state = self._journal.state() if self._journal else None
        return state.run_id if state else None

    def start(self, run: RunInfo) -> None:
        """Write the start event and launch the sender."""
        self._journal = Journal(run.output_dir)
        if not run.continued:
            self.journal.clear()
        earlier = self.journal.events()
        if count_starts(earlier) and not self._uri_given:
            self.uri = last_start(earlier)["uri"]  # resumed from another folder, the run stays in the store it began in
        self.journal.append(self._start_event(run, self._run_key(earlier)))
        self._sender = launch_sender(self.journal, session=count_starts(earlier) + 1)

    def _run_key(self, events: list[dict[str, Any]]) -> str:
        """The key of the record that this store already has of the run, or a new one."""
        target = (self.uri, self.experiment)
        known = [event["run_key"] for event in events if event["event"] == "start" and (event["uri"], event["experiment"]) == target]
        return known[-1] if known else uuid.uuid4().hex

    def _start_event(self, run: RunInfo, run_key: str) -> dict[str, Any]:
        config = run.output_dir / "config.yaml"
        return {
            "event": "start",
            "time": time.time(),
            "uri": self.uri,
            "experiment": self.experiment,
            "run_key": run_key,
            "name": self.run_name or run.name,
            "params": flatten(run.config),
            "tags": run_tags(replace(run, tags={**run.tags, **self.tags}), self.parent_run_id),
            "datasets": [vars(record) for record in run.datasets],
            "artifacts": [self.journal.portable(config)] if config.exists() else [],
            "system_seconds": self.system_seconds,
        }

    def log(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        """Metrics are read from metrics.jsonl; here the user only learns, once per change, whether they get through."""
        now = time.monotonic()
        if now < self._next_notice:
            return
        self._next_notice = now + NOTICE_SECONDS
        crashed = self._sender is not None and self._sender.poll() not in (None, 0)
        problem = f"the sender stopped, see {self.journal.log_path}" if crashed else self._store_problem()
        if problem != self._problem:
            self._problem = problem
            log.warning("tracking: %s", f"{problem}; training goes on, the records are sent later" if problem else "connected again")

    def _store_problem(self) -> str | None:
        state = self.journal.state()
        return state.problem if state else None

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Record rows as the MLflow table `name`.json."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        content = {"columns": columns, "data": [[row.get(key) for key in columns] for row in rows]}
        path = self.journal.folder / f"{name}.json"
        write_atomic(path, json.dumps(content, default=str))
        self.journal.append({"event": "table", "path": self.journal.portable(path)})

    def artifact(self, path: Path, folder: str = "") -> None:
        """Record a file or folder."""
        self.journal.append({"event": "artifact", "path": self.journal.portable(path), "folder": folder})

    def figure(self, path: Path) -> None:
        """Record a plot under ``plots``."""
        self.artifact(path, "plots")

    def finish(self, status: Status) -> None:
        """Send the rest, waiting at most `finish_seconds`; complete result.json with the run id if it came late.

        Does nothing for a run that failed before it was started here: it has no record.
        """
        if self._sender is None:
            return
        self.journal.append({"event": "finish", "time": time.time(), "status": status})
        if not wait_for(self._sender, self.finish_seconds):
            reason = self._store_problem() or f"see {self.journal.log_path}"
            command = f"posttrain sync run={self.journal.output_dir}"
            log.warning("tracking: not everything reached %s (%s). Send it later with: %s", redacted(self.uri), reason, command)
        add_run_id(self.journal)

    def hint(self) -> str:
        """How to look at the store."""
        return ui_hint(self.uri)


def closing_hint(tracking: Mapping[str, Any]) -> str:
    """The command or address that shows the records, from the `tracking` node of a config."""
    return ui_hint(resolve_uri(tracking.get("uri"), Path.cwd()))


def run_tags(run: RunInfo, parent_run_id: str | None) -> dict[str, str]:
    """MLflow tags of a run: ``posttrain.*``, the parent, and the origin MLflow's own pages show."""
    method = run.config.get("method")
    tags: dict[str, str | None] = {"method": method.get("name") if isinstance(method, Mapping) else None, "study": run.config.get("study")}
    tags |= {"git": git_state(Path.cwd())} | dict(run.tags)
    found = {f"posttrain.{key}": str(value) for key, value in tags.items() if value is not None}
    found |= {"mlflow.user": user_name(), "mlflow.source.name": "posttrain", "mlflow.source.type": "LOCAL"}
    if "posttrain.git" in found:
        found["mlflow.source.git.commit"] = found["posttrain.git"].removesuffix("-dirty")
    if parent_run_id:
        found["mlflow.parentRunId"] = parent_run_id
    return found


def user_name() -> str:
    """Login name, or the user number where it has no name (containers)."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def start_client(module: str, *arguments: str, output: tuple[int, int]) -> Process:
    """`python -m posttrain.runs.tracking.MODULE`, which talks to the store: short timeouts unless the user set them.

    output: file descriptors of its standard output and error.
    """
    root = str(Path(posttrain.__file__).parents[1])
    search = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", f"posttrain.runs.tracking.{module}", *arguments]
    environment = CLIENT_SETTINGS | os.environ
    return start(command, environment, output=output, fresh=environment | {"PYTHONPATH": search})


def launch_sender(journal: Journal, session: int) -> Process:
    """Start the sender in a session of its own: Ctrl-C in the terminal is for the run, the sender ends with it.

    A cluster signals every process of a job, also one that is still importing: the sender is born with its stop signals blocked.
    """
    with writing(journal.log_path), journal.log_path.open("ab") as output, _blocked(signal.SIGINT, signal.SIGTERM):
        return start_client("sender", str(journal.output_dir.absolute()), str(session), output=(output.fileno(), output.fileno()))


@contextmanager
def _blocked(*signals: signal.Signals) -> Iterator[None]:
    """Inside, these signals wait; a process that is started there never gets them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def wait_for(sender: Process, seconds: float) -> bool:
    """Whether the sender said, within that time, that it sent everything; afterwards it no longer runs."""
    try:
        return sender.wait(seconds) == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        end(sender)


def add_run_id(journal: Journal) -> None:
    """Fill in `mlflow_run_id` of result.json, when the store was reached only after it was written."""
    path = journal.output_dir / "result.json"
    state = journal.state()
    if state and state.run_id and path.exists() and read_result(path).mlflow_run_id != state.run_id:
        fields = json.loads(path.read_text()) | {"mlflow_run_id": state.run_id}
        write_atomic(path, json.dumps(fields, indent=2) + "\n")

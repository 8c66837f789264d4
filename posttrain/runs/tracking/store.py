"""The MLflow side of a run's record. Runs in the sender or in ``posttrain sync``, never in the training process.

Nothing is sent twice: the store itself says, on every connection, how far it got with each metric, and everything else is idempotent
(a run is found again by its key, parameters and tags are set, files are replaced).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from posttrain.runs.records import decode, whole_lines
from posttrain.runs.tracking.journal import Journal, last_start
from posttrain.runs.tracking.naming import chunks, metric_name
from posttrain.runs.tracking.uris import artifact_location, redacted, sqlite_path

RUN_KEY = "posttrain.record"
STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
# What a store throws while it is away: MLflow's wrapping, sockets and files, a database driver.
AWAY = (MlflowException, OSError, SQLAlchemyError)
REJECTED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")
BATCH = 500
log = logging.getLogger(__name__)


class Tail:
    """New whole lines of a file that is being appended to."""

    def __init__(self, path: Path):
        self.path = path
        self.offset = 0

    def read(self) -> Iterator[dict[str, Any]]:
        """Every line that was completed since the last call."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self.offset)
            content = file.read()
        self.offset += content.rfind(b"\n") + 1
        yield from map(decode, whole_lines(content))


class Store:
    """Sends one run's record to MLflow. Any exception leaves it consistent: `connect` again and go on."""

    def __init__(self, journal: Journal):
        self.journal = journal
        state = journal.state()
        if state is None:
            raise ValueError(f"{journal.events_path} holds no start event")
        self.state = state
        self.start = last_start(journal.events())
        self.metrics_sent = 0
        self._steps: dict[str, int] = {}
        self._clock: dict[int, float] = {}
        self._client: MlflowClient | None = None
        self._tails: list[Tail] = []

    @property
    def run_id(self) -> str:
        """The MLflow run. Raises RuntimeError before the first `connect`."""
        if self.state.run_id is None:
            raise RuntimeError("not connected")
        return self.state.run_id

    @property
    def client(self) -> MlflowClient:
        """MLflow's client, opened on first use (a database is created then). Raises one of AWAY."""
        if self._client is None:
            self._client = open_client(self.start["uri"])
        return self._client

    def connect(self) -> None:
        """Find or create the run and learn how far the store got."""
        run = self._existing_run()
        if run is None:
            self.state.events = 0
            self.state.described = False
            self.state.experiment_id = ensure_experiment(self.client, self.start["experiment"], artifact_location(self.start["uri"]))
            run = find_run(self.client, self.state.experiment_id, self.state.run_key) or self._create_run(self.state.experiment_id)
        self.state.run_id = run.info.run_id
        self.state.problem = None
        self._save()
        self._steps = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        out = self.journal.output_dir
        # Throughput first: it carries the wall clock of the steps.
        self._tails = [Tail(path) for path in (out / "throughput.jsonl", out / "metrics.jsonl", self.journal.system_path)]

    def _existing_run(self) -> Run | None:
        if self.state.run_id is None:
            return None
        try:
            run = self.client.get_run(self.state.run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        if run.info.lifecycle_stage == "active":
            return run
        log.warning("run %s was deleted in MLflow: a new one begins", self.state.run_id)
        return None

    def _create_run(self, experiment_id: str) -> Run:
        tags = self.start["tags"] | {RUN_KEY: self.state.run_key}
        return self.client.create_run(experiment_id, milliseconds(self.start["time"]), tags, self.start["name"])

    def send(self) -> None:
        """Bring the store up to date with everything that is on disk now."""
        if not self._tails:
            self.connect()
        events = self.journal.events()
        for event in events[self.state.events :]:
            if event["event"] == "finish":
                self._send_metrics()
            self._send_event(event)
            self.state.events += 1
            self._save()
        self._send_metrics()

    def disconnect(self, problem: str | None) -> None:
        """Forget the connection; the next `send` asks the store anew. `problem` is what the user is told."""
        self._tails = []
        self.state.problem = problem
        self._save()

    def _save(self) -> None:
        self.journal.save(self.state)

    def _send_event(self, event: Mapping[str, Any]) -> None:
        """A refused event (an illegal value, a file that is gone) is noted and skipped; a store that is away raises."""
        senders = {"start": self._send_start, "artifact": self._send_artifact, "table": self._send_table, "finish": self._send_finish}
        try:
            senders[event["event"]](event)
        except FileNotFoundError as error:
            self._reject(f"{event['event']}: {error}")
        except MlflowException as error:
            if error.error_code not in REJECTED:
                raise
            self._reject(f"{event['event']}: {error.message}")

    def _reject(self, message: str) -> None:
        log.error("the store refused %s", message)
        self.state.rejected += (message[:1000],)

    def _send_start(self, event: Mapping[str, Any]) -> None:
        self.client.update_run(self.run_id, status="RUNNING")
        tags = event["tags"] | {RUN_KEY: self.state.run_key}
        self.client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        for path in event["artifacts"]:
            self.client.log_artifact(self.run_id, str(self.journal.output_dir / path))
        if self.state.described:
            return
        for part in chunks(list(event["params"].items()), 100):
            self.client.log_batch(self.run_id, params=[Param(key, value) for key, value in part])
        if event["datasets"]:
            self.client.log_inputs(self.run_id, [dataset_input(record) for record in event["datasets"]])
        self.state.described = True

    def _send_artifact(self, event: Mapping[str, Any]) -> None:
        path = self.journal.output_dir / event["path"]
        if path.is_dir():
            self.client.log_artifacts(self.run_id, str(path), event["folder"] or path.name)
        else:
            self.client.log_artifact(self.run_id, str(path), event["folder"] or None)

    def _send_table(self, event: Mapping[str, Any]) -> None:
        path = self.journal.output_dir / event["path"]
        self.client.log_artifact(self.run_id, str(path))
        # MLflow's own log_table appends to a table that is there, which would double it.
        tables = json.loads(self.client.get_run(self.run_id).data.tags.get("mlflow.loggedArtifacts", "[]"))
        entry = {"path": path.name, "type": "table"}
        if entry not in tables:
            self.client.set_tag(self.run_id, "mlflow.loggedArtifacts", json.dumps([*tables, entry]))

    def _send_finish(self, event: Mapping[str, Any]) -> None:
        result = self.journal.output_dir / "result.json"
        if result.exists():
            self.client.log_artifact(self.run_id, str(result))
        self.client.set_terminated(self.run_id, STATUS[event["status"]], milliseconds(event["time"]))

    def abandon(self) -> None:
        """The run died without a word: mark it FAILED, and let the next resume set it running again."""
        self.client.set_terminated(self.run_id, "FAILED")

    def _send_metrics(self) -> None:
        fresh = [metric for tail in self._tails for row in tail.read() for metric in self._metrics(row)]
        for part in chunks(fresh, BATCH):
            self.client.log_batch(self.run_id, metrics=part)
            self.metrics_sent += len(part)

    def _metrics(self, row: dict[str, Any]) -> Iterator[Metric]:
        """The values of one line that the store does not have yet."""
        step = row.pop("step")
        if "time" in row:
            self._clock[step] = row.pop("time")
        timestamp = milliseconds(self._clock.get(step) or time.time())
        for key, value in row.items():
            name = metric_name(key)
            if step > self._steps.get(name, -1):
                self._steps[name] = step
                yield Metric(name, float(value), timestamp, step)


def open_client(uri: str) -> MlflowClient:
    """A client; a SQLite database is created once, though many runs of a sweep start together."""
    if not uri.startswith("sqlite"):
        return MlflowClient(uri)
    path = sqlite_path(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


def ensure_experiment(client: MlflowClient, name: str, location: str | None) -> str:
    """Id of the experiment, which is created if it does not exist."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return client.create_experiment(name, artifact_location=location)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(name)  # another run of the sweep was quicker
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        raise MlflowException(f"the MLflow experiment '{name}' was deleted: restore it or choose another tracking.experiment")
    return experiment.experiment_id


def find_run(client: MlflowClient, experiment_id: str, run_key: str) -> Run | None:
    """A run that an earlier sender created but did not live to write down."""
    found = client.search_runs([experiment_id], f"tags.`{RUN_KEY}` = '{run_key}'", ViewType.ACTIVE_ONLY, max_results=1)
    return found[0] if found else None


def dataset_input(record: Mapping[str, Any]) -> DatasetInput:
    """A `DatasetRecord` as MLflow's dataset input."""
    profile = json.dumps({"num_rows": record["examples"], "num_tokens": record["tokens"]})
    source = json.dumps({"uri": record["source"]})
    dataset = Dataset(record["name"][:500], record["digest"][:36], "local", source, profile=profile)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", record["context"])])


def milliseconds(seconds: float) -> int:
    """MLflow's clock."""
    return int(seconds * 1000)


def describe(error: Exception, uri: str) -> str:
    """Why nothing gets through, in one line for the user."""
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"the MLflow store {redacted(uri)} does not answer: {first[:300]}"

"""``posttrain sync run=DIR``: send to MLflow what a run could not send while its store was away."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from posttrain.errors import ConfigError, Problem
from posttrain.runs.records import Status
from posttrain.runs.tracking.journal import Journal
from posttrain.runs.tracking.mlflow import CLIENT_SETTINGS, add_run_id


@dataclass(frozen=True)
class SyncReport:
    """What was sent for one run. rejected: what the store refused for good, in words."""

    output_dir: Path
    uri: str
    run_id: str
    metrics: int
    events: int
    rejected: tuple[str, ...]

    def __str__(self) -> str:
        line = f"{self.output_dir}: sent {self.metrics} metric values and {self.events} records to run {self.run_id}"
        return "\n  refused: ".join((line, *self.rejected))


def sync(run_dir: Path) -> list[SyncReport]:
    """Send all unsent records below `run_dir` (a run, a pipeline or a sweep).

    Raises ConfigError if there is nothing to send from, if a run is still sending, or if the store does not answer.
    """
    linked = [path.resolve() for path in run_dir.rglob("*") if path.is_symlink() and path.is_dir()]  # a pipeline's stages
    found = {path.resolve() for folder in (run_dir, *linked) for path in folder.rglob("tracking/events.jsonl")}
    journals = [Journal(path.parents[1]) for path in sorted(found)]
    if not journals:
        raise ConfigError(Problem("run", f"{run_dir} holds no MLflow records", "the run needs tracking=mlflow"))
    return [sync_run(journal) for journal in journals]


def complete(folder: Path, status: Status) -> None:
    """Note the end of a run that did not live to do so, and send MLflow what it could not: it may have been ended sooner than its store
    answered. Nothing for a run without a record; a store that is away costs a line.
    """
    journal = Journal(folder)
    events = journal.events()
    if events and events[-1]["event"] != "finish":
        journal.append({"event": "finish", "time": time.time(), "status": status})
    send_rest(folder)


def send_rest(folder: Path) -> None:
    """Send MLflow what a run that has ended could not."""
    journal = Journal(folder)
    state = journal.state()
    if state is None or state.events >= len(journal.events()):
        return
    try:
        sync_run(journal)
    except ConfigError as error:  # the store is away, or the run's own sender is still at it
        print(error, file=sys.stderr)


def sync_run(journal: Journal) -> SyncReport:
    """Send the unsent records of one run."""
    os.environ.update(CLIENT_SETTINGS | os.environ)  # read by MLflow when it is imported and with every request
    from filelock import FileLock, Timeout

    from posttrain.runs.tracking.store import AWAY, Store, describe

    try:
        with FileLock(journal.lock_path, timeout=1):
            store = Store(journal)
            before = store.state.events
            try:
                store.send()
            except AWAY as error:
                store.disconnect(describe(error, store.start["uri"]))
                hint = "start the server, or make the database reachable, and run the command again"
                raise ConfigError(Problem("tracking.uri", describe(error, store.start["uri"]), hint)) from error
    except Timeout as error:
        raise ConfigError(Problem("run", f"{journal.output_dir} is sending its records itself right now")) from error
    add_run_id(journal)
    state = store.state
    return SyncReport(journal.output_dir, state.uri, store.run_id, store.metrics_sent, state.events - before, state.rejected)

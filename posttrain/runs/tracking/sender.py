"""The process beside a run that keeps its MLflow record up to date: ``python -m posttrain.runs.tracking.sender OUT SESSION``.

It ends when the run has finished and everything is sent (exit 0), or when the store stays away then (exit 3). If the run dies, it sends
what is there, marks the run FAILED and ends. A later session of the same run (a resume) makes it end at once.

A terminal or a scheduler signals every process. This one must outlive the run by a moment, and ends with it: whoever starts it blocks
SIGINT and SIGTERM.
"""

from __future__ import annotations

import logging
import os
import select
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock
from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

from posttrain.runs.records import MetricsFile, read_metrics
from posttrain.runs.tracking.journal import Journal, count_starts
from posttrain.runs.tracking.store import AWAY, Store, describe

POLL_SECONDS = 0.2
SEND_SECONDS = 2.0
GRACE_SECONDS = 5.0  # how long a finished run's store may stay away before the sender gives up
INCOMPLETE = 3
log = logging.getLogger("posttrain.tracking")


class SystemMetrics:
    """Samples the machine (processor, memory, disk, network, GPUs) into system.jsonl every `seconds`, numbered on over resumes."""

    def __init__(self, path: Path, seconds: float | None):
        self.seconds = seconds
        self._due = time.monotonic()
        if seconds is not None:
            earlier = read_metrics(path)
            self._step = earlier[-1]["step"] + 1 if earlier else 0
            self._file = MetricsFile(path, timed=True)
            self._monitors = monitors()

    def sample(self) -> None:
        """Take a sample if one is due."""
        if self.seconds is None or time.monotonic() < self._due:
            return
        self._due = time.monotonic() + self.seconds
        row: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            row |= {f"system/{key}": value for key, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        self._file.append(self._step, row)
        self._step += 1


def monitors() -> list[BaseMetricsMonitor]:
    """MLflow's own monitors of this machine; the GPU one only where NVIDIA's library finds a device."""
    found: list[BaseMetricsMonitor] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    try:
        found.append(GPUMonitor())
    except (ImportError, RuntimeError) as error:
        log.info("no GPU metrics: %s", error)
    return found


class Sender:
    """One session of sending, from a start event to the end of the run."""

    def __init__(self, journal: Journal, session: int):
        self.journal = journal
        self.session = session
        events = journal.events()
        self.store = Store(journal)
        self.system = SystemMetrics(journal.system_path, self.store.start["system_seconds"])
        self._events_size = -1
        self._events = events

    def run(self) -> int:
        """Follow the run. Returns the exit code."""
        due, ended_at = 0.0, None
        while not self._superseded():
            ended = self._finished() or not run_is_alive()
            ended_at = ended_at or (time.monotonic() if ended else None)
            self.system.sample()
            if ended or time.monotonic() >= due:
                sent = self._try_send(abandoned=ended and not self._finished())
                due = time.monotonic() + SEND_SECONDS
                if ended_at and (sent or time.monotonic() - ended_at > GRACE_SECONDS):
                    return 0 if sent else INCOMPLETE
            time.sleep(POLL_SECONDS)
        return 0

    def _try_send(self, *, abandoned: bool) -> bool:
        try:
            self.store.send()
            if abandoned:
                self.store.abandon()
        except AWAY as error:  # the records stay on disk, and are tried again
            if self.store.state.problem is None:
                log.exception("sending failed")
            self.store.disconnect(describe(error, self.store.start["uri"]))
            return False
        return True

    def _read_events(self) -> None:
        path = self.journal.events_path
        size = path.stat().st_size if path.exists() else 0
        if size != self._events_size:
            self._events, self._events_size = self.journal.events(), size

    def _superseded(self) -> bool:
        """Whether the record was taken over by a resume, or cleared and begun anew."""
        self._read_events()
        starts = [event for event in self._events if event["event"] == "start"]
        return len(starts) != self.session or starts[-1]["run_key"] != self.store.state.run_key

    def _finished(self) -> bool:
        return self._events[-1]["event"] == "finish"


def run_is_alive() -> bool:
    """The run holds the other end of this process's standard input."""
    return not select.select([0], [], [], 0)[0]


def main(arguments: Sequence[str]) -> int:
    """Wait for an earlier sender of the same run to end, then send."""
    output_dir, session = arguments
    os.nice(5)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    journal = Journal(Path(output_dir))
    with FileLock(journal.lock_path):
        if count_starts(journal.events()) != int(session):
            return 0
        return Sender(journal, int(session)).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

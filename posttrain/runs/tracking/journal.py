"""The local record behind MLflow: OUTPUT_DIR/tracking.

events.jsonl   what happened besides metrics (start, table, artifact, finish), written by the run
state.json     how much of it the store has, written by the sender
system.jsonl   machine metrics, written by the sender
sender.log     what the sender and MLflow printed
lock           held by the one process that may send

Metrics themselves are read from metrics.jsonl and throughput.jsonl, so a run that was never connected can be sent whole.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from posttrain.runs.files import write_atomic, writing
from posttrain.runs.records import drop_torn_line, whole_lines


@dataclass
class State:
    """How far the sender got. events: number of events the store has; problem: why nothing gets through now, for the user."""

    uri: str
    experiment: str
    run_key: str
    experiment_id: str | None = None
    run_id: str | None = None
    described: bool = False
    events: int = 0
    rejected: tuple[str, ...] = ()
    problem: str | None = None


class Journal:
    """Reader and writer of OUTPUT_DIR/tracking."""

    def __init__(self, output_dir: Path):
        self.output_dir = output_dir
        self.folder = output_dir / "tracking"
        self.events_path = self.folder / "events.jsonl"
        self.state_path = self.folder / "state.json"
        self.system_path = self.folder / "system.jsonl"
        self.log_path = self.folder / "sender.log"
        self.lock_path = self.folder / "lock"

    def clear(self) -> None:
        """Forget the record (the files of the run itself stay)."""
        for path in (self.state_path, self.events_path, self.system_path):
            path.unlink(missing_ok=True)

    def append(self, event: dict[str, Any]) -> None:
        """Write one event durably."""
        with writing(self.events_path):
            self.folder.mkdir(exist_ok=True)
            drop_torn_line(self.events_path)
            with self.events_path.open("ab") as file:
                file.write((json.dumps(event) + "\n").encode())
                file.flush()
                os.fsync(file.fileno())

    def events(self) -> list[dict[str, Any]]:
        """All whole events, in order."""
        if not self.events_path.exists():
            return []
        return [json.loads(line) for line in whole_lines(self.events_path.read_bytes())]

    def state(self) -> State | None:
        """How far the store that the last start event names got (a new state if it was never reached); None if nothing was started."""
        events = self.events()
        if not count_starts(events):
            return None
        start = last_start(events)
        target = {key: start[key] for key in ("uri", "experiment", "run_key")}
        if self.state_path.exists():
            fields = json.loads(self.state_path.read_text())
            if target.items() <= fields.items():
                return State(**{**fields, "rejected": tuple(fields["rejected"])})
        return State(**target)

    def save(self, state: State) -> None:
        """Persist how far the sender got."""
        write_atomic(self.state_path, json.dumps(asdict(state), indent=1) + "\n")

    def portable(self, path: Path) -> str:
        """`path` relative to the output folder if it lies inside, so that a moved run can still be sent."""
        absolute = path.absolute()
        root = self.output_dir.absolute()
        return str(absolute.relative_to(root)) if absolute.is_relative_to(root) else str(absolute)


def last_start(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The start event that says where the record goes."""
    return next(event for event in reversed(events) if event["event"] == "start")


def count_starts(events: list[dict[str, Any]]) -> int:
    """How often the run was started: 1, plus the number of resumes."""
    return sum(event["event"] == "start" for event in events)

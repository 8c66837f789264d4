"""What every tracker does. A new one = one file with a class of this shape + one YAML in conf/tracking."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, SupportsFloat

from posttrain.runs.records import Status


@dataclass(frozen=True, kw_only=True)
class DatasetRecord:
    """A data set that went into a run. digest: content hash; context: ``train``, ``val`` or the name of an evaluation suite."""

    name: str
    source: str
    digest: str
    context: str
    examples: int
    tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What a tracker learns about a run at its start.

    output_dir: holds metrics.jsonl and throughput.jsonl (``train``-side names; ``val/`` and ``eval/`` names stay as they are).
    config: resolved, plain values. tags: ``study``, ``arm``, ``stage``, ``method`` ... without prefix; None values are left out.
    continued: False (resume=never) begins a new record; True continues the record this folder holds, if it holds one.
    start_step: the last step that is already done; what is logged next has a later step.
    """

    output_dir: Path
    name: str
    config: Mapping[str, Any]
    tags: Mapping[str, str | None] = field(default_factory=dict)
    datasets: Sequence[DatasetRecord] = ()
    continued: bool = True
    start_step: int = 0


class Tracker(Protocol):
    """Copies the records of one run somewhere. Lives on rank 0. No call may block training or fail because a server is away."""

    @property
    def run_id(self) -> str | None:
        """The backend's id of this run, once known."""

    def start(self, run: RunInfo) -> None:
        """Begin, or continue, the record of a run. Called after metrics.jsonl was truncated to the resumed step."""

    def log(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        """Take note of metrics that were just appended to metrics.jsonl or throughput.jsonl."""

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Record a whole table (sample generations); the same name again replaces it."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """Record a file or folder of the run under `folder`; the same path again replaces it."""

    def figure(self, path: Path) -> None:
        """Record a plot that was written to `path` (PNG)."""

    def finish(self, status: Status) -> None:
        """Send what is left, within a bounded time, and close the record, if one was begun. Called after result.json was written."""

    def hint(self) -> str:
        """The command or address under which the user finds the record; empty if there is none."""


def git_state(folder: Path) -> str | None:
    """Commit of the repository around `folder`, with ``-dirty`` if it has changes; None outside a repository or without git."""
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None

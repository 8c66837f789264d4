"""No tracking: the files in the output folder are the only record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

from posttrain.runs.records import Status
from posttrain.runs.tracking.base import RunInfo


class NoTracker:
    """Copies nothing anywhere."""

    run_id: str | None = None

    def start(self, run: RunInfo) -> None:
        """Nothing to begin."""

    def log(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        """Nothing to log to."""

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Nothing to log to."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """Nothing to copy to."""

    def figure(self, path: Path) -> None:
        """Nothing to copy to."""

    def finish(self, status: Status) -> None:
        """Nothing to close."""

    def hint(self) -> str:
        """No record, no address."""
        return ""

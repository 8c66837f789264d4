"""Where a run's numbers go: files first, then the tracker and the terminal. Does nothing on ranks that do not lead."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from posttrain.runs.progress import Progress
from posttrain.runs.ranks import Ranks
from posttrain.runs.records import MetricsFile, peak_memory_bytes
from posttrain.runs.tracking.base import Tracker

log = logging.getLogger(__name__)


class Reporter:
    """The leading rank writes metrics.jsonl (deterministic values) and throughput.jsonl (times) and shows both."""

    def __init__(self, output_dir: Path, ranks: Ranks, tracker: Tracker, *, device: str) -> None:
        self.output_dir = output_dir
        self.ranks = ranks
        self.tracker = tracker
        self.device = device
        self.progress: Progress | None = None
        self.before: dict[str, float] = {}
        self.measured_again: set[str] = set()
        self.latest: dict[str, float] = {}
        self._at: dict[str, float] = {}
        self.last_step = 0
        self._metrics = MetricsFile(output_dir / "metrics.jsonl") if ranks.leads else None
        self._throughput = MetricsFile(output_dir / "throughput.jsonl", timed=True) if ranks.leads else None

    def rewind(self, step: int) -> None:
        """Forget what was logged after `step`, which a resumed run computes again; what is left is known as the latest values."""
        for file in (self._metrics, self._throughput):
            if file is not None:
                file.truncate_after(step)
        for row in self._metrics.read() if self._metrics is not None else ():
            self._note(int(row.pop("step")), row)

    def step(
        self, step: int, metrics: Mapping[str, float], *, tokens: int, seconds: float, speeds: Mapping[str, float] | None = None
    ) -> None:
        """Log an optimizer step: its metrics, its real tokens over all ranks, the wall time it took, and further times and speeds."""
        if self._metrics is None or self._throughput is None:
            return
        speed = {"seconds": seconds, "tokens_per_second": tokens / seconds, "memory_bytes": float(peak_memory_bytes(self.device))}
        speed |= speeds or {}
        self._metrics.append(step, metrics)
        self._throughput.append(step, speed)
        self._note(step, metrics)
        self.tracker.log(step, {**metrics, **speed})
        if self.progress is not None:
            self.progress.update(step, metrics, speed["tokens_per_second"], speed["memory_bytes"])

    def final(self, step: int, metrics: Mapping[str, float]) -> None:
        """As `values`, of a run's last ones: where it was killed after them and is finished now, they take the place of those."""
        if self._metrics is not None:
            self._metrics.forget_last(step, metrics)
        self.values(step, metrics)

    def values(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log values measured at a step besides its own metrics, such as an evaluation."""
        if self._metrics is None or not metrics:
            return
        self._metrics.append(step, metrics)
        self._note(step, metrics)
        self.tracker.log(step, metrics)
        line = f"step {step}: " + "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        log.info(line, extra={"file_only": True})
        self.say(line)

    def say(self, line: str) -> None:
        """A line for the terminal, without disturbing the bar; the leading rank's only."""
        if self.progress is not None:
            self.progress.message(line)

    def _note(self, step: int, metrics: Mapping[str, float]) -> None:
        self._at = {**(self._at if step == self.last_step else {}), **metrics}
        self.last_step = step
        self.latest.update(metrics)
        if step == 0:
            self.before.update(metrics)
        else:
            self.measured_again.update(metrics)

    def values_at(self, step: int) -> dict[str, float]:
        """Everything logged for the current step, by which its checkpoint is scored; empty for another step."""
        return dict(self._at) if step == self.last_step else {}

    def sync(self) -> None:
        """Make the files durable, before a checkpoint that a resume will trust."""
        for file in (self._metrics, self._throughput):
            if file is not None:
                file.sync()

    def close(self) -> None:
        """Close the files and the progress display; nothing can be logged afterwards. May be called twice."""
        if self.progress is not None:
            self.progress.close()
        for file in (self._metrics, self._throughput):
            if file is not None:
                file.close()
        self._metrics = self._throughput = self.progress = None

"""What a run leaves behind: metrics.jsonl, throughput.jsonl, result.json, log.txt.

These files are the local truth; trackers only copy from them.
metrics.jsonl holds values that are a deterministic function of the run (no times), throughput.jsonl the times.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import resource
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, SupportsFloat, TextIO

from posttrain.runs.files import write_atomic, writing

Status = Literal["finished", "stopped", "failed"]
LIBRARIES = ("posttrain", "torch", "lightning", "transformers", "peft", "datasets", "hydra-core", "omegaconf", "mlflow", "numpy")
OPTIONAL = ("stages", "budget", "entering", "end")  # keys of result.json that most runs do not have
SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def encode(value: SupportsFloat) -> float | int | str:
    """A number as strict JSON: floats in full precision, and NaN and infinities as the strings of `SPECIAL`."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    number = float(value)
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def decode(line: str | bytes) -> dict[str, Any]:
    """One line of a metrics file back to numbers. Raises ValueError on a torn or broken line."""
    row = json.loads(line)
    return {key: SPECIAL.get(value, value) if isinstance(value, str) else value for key, value in row.items()}


class MetricsFile:
    """Append-only JSON lines, `{"step": 3, "loss": 0.25, ...}`, in the order in which they are logged.

    Every line reaches the operating system at once, so killing the process loses nothing; a power cut loses at most
    `fsync_seconds`, and nothing from before the last `sync()` (called with each checkpoint).
    With `timed`, a line carries the wall clock as `time` (seconds since 1970): for throughput.jsonl.
    A torn last line, left by a power cut or a full disk, is dropped when the file is opened.
    """

    def __init__(self, path: Path, *, timed: bool = False, fsync_seconds: float = 5.0):
        self.path = path
        self.timed = timed
        self.fsync_seconds = fsync_seconds
        with writing(path):
            drop_torn_line(path)
            self._open()

    def _open(self) -> None:
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._synced = time.monotonic()

    def append(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        """Log one line. Raises OSError with advice when the disk is full; the file then ends with its last whole line."""
        row: dict[str, Any] = {"step": step} | {key: encode(value) for key, value in metrics.items()}
        if self.timed:
            row["time"] = round(time.time(), 3)
        with writing(self.path):
            self._write((json.dumps(row) + "\n").encode())
            if time.monotonic() - self._synced > self.fsync_seconds:
                self.sync()

    def _write(self, line: bytes) -> None:
        before = os.fstat(self._descriptor).st_size
        try:
            written = os.write(self._descriptor, line)
            # A nearly full disk takes part of the line first and reports the error with the next write.
            while written < len(line):
                written += os.write(self._descriptor, line[written:])
        except OSError:
            os.ftruncate(self._descriptor, before)
            raise

    def sync(self) -> None:
        """Make all lines durable against a power cut."""
        os.fsync(self._descriptor)
        self._synced = time.monotonic()

    def truncate_after(self, step: int) -> None:
        """Forget every line of a later step (they will be computed again); kept lines stay byte for byte. For resume."""
        kept = [line for line in self.path.read_bytes().splitlines(keepends=True) if decode(line)["step"] <= step]
        os.close(self._descriptor)
        write_atomic(self.path, b"".join(kept))
        self._open()

    def forget_last(self, step: int, names: Collection[str]) -> None:
        """Drop the last line if it is of this step and holds exactly these names, since they are logged again."""
        lines = self.path.read_bytes().splitlines(keepends=True)
        if lines and decode(lines[-1]).keys() - {"time"} == {"step", *names} and decode(lines[-1])["step"] == step:
            os.ftruncate(self._descriptor, sum(map(len, lines[:-1])))

    def read(self) -> list[dict[str, Any]]:
        """Every whole line, in order."""
        return read_metrics(self.path)

    def close(self) -> None:
        """Sync and close; the file cannot be appended to afterwards."""
        self.sync()
        os.close(self._descriptor)


def drop_torn_line(path: Path) -> None:
    """Cut a last line without its line end, if there is one."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every whole line of a metrics file; a torn last line (the run may be writing it now) is left out. Empty if absent."""
    if not path.exists():
        return []
    return [decode(line) for line in whole_lines(path.read_bytes())]


def whole_lines(content: bytes) -> Iterator[bytes]:
    """The lines of `content` that end with a line end."""
    yield from content[: content.rfind(b"\n") + 1].splitlines()


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that shape a result, read from package metadata without importing them."""
    return {"python": platform.python_version()} | {name: _version(name) for name in LIBRARIES}


@cache
def _version(name: str) -> str:
    """Reading a package's metadata takes milliseconds, and a run tells its versions in several places."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run came to.

    status: finished = reached its last step; stopped = interrupted after a checkpoint; failed = an error ended it.
    examples, tokens: real ones (no padding) that were trained on. flops: floating-point operations of training.
    train_seconds: wall time inside training, over all resumes. tokens_per_second: tokens / train_seconds.
    metrics: the final values, such as ``val/loss`` or ``eval/exact_match/accuracy``. artifact: its folder.
    stages: of a pipeline, what each came to. budget: unit, asked and spent, where there was one. entering: what the run cost that this
    one starts from; `spent` of the budget holds it, the counts above do not. end: max_steps, epochs and budget that were asked for.
    """

    status: Status
    method: str
    steps: int
    examples: int
    tokens: int
    flops: float
    train_seconds: float
    tokens_per_second: float
    peak_memory_bytes: int
    metrics: Mapping[str, float]
    artifact: str | None = None
    mlflow_run_id: str | None = None
    versions: Mapping[str, str] = field(default_factory=versions)
    stages: Sequence[Mapping[str, Any]] | None = None
    budget: Mapping[str, Any] | None = None
    entering: Mapping[str, Any] | None = None
    end: Mapping[str, Any] | None = None


def reopen(path: Path) -> None:
    """Take back that a run is finished, since it goes on. Nothing where there is no such result.json, or a damaged one."""
    try:
        past = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return
    if past["status"] == "finished":
        write_atomic(path, json.dumps({**past, "status": "stopped"}, indent=2, allow_nan=False) + "\n")


def write_result(path: Path, result: Result) -> None:
    """Write result.json atomically, as strict JSON (see `encode`)."""
    fields = asdict(result)
    fields["metrics"] = {key: encode(value) for key, value in result.metrics.items()}
    for key in ("flops", "train_seconds", "tokens_per_second"):
        fields[key] = encode(fields[key])
    present = {key: value for key, value in fields.items() if key not in OPTIONAL or value is not None}
    write_atomic(path, json.dumps(present, indent=2, allow_nan=False) + "\n")


def read_result(path: Path) -> Result:
    """Read what `write_result` wrote."""
    fields = decode(path.read_text())
    fields["metrics"] = decode(json.dumps(fields["metrics"]))
    return Result(**fields)


def peak_memory_bytes(device: str) -> int:
    """The most memory this process has held: allocated device memory for ``cuda*``, resident memory otherwise."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    # Outside Linux. Not the first choice: there it also counts what ran in this process before an exec.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class ConsoleHandler(logging.StreamHandler[TextIO]):
    """Logs to whatever sys.stderr is at that moment, so that a live progress bar can move out of the way."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        """The current sys.stderr."""
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        raise AttributeError("the console handler always follows sys.stderr")


def open_log(output_dir: Path, rank: int = 0, *, level: int = logging.INFO) -> logging.Logger:
    """Set up the `posttrain` logger: rank 0 to OUTPUT_DIR/log.txt (appended) and the console; other ranks only warnings, to the console.

    Calling it again moves the logger to the new folder.
    """
    logger = logging.getLogger("posttrain")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    console = ConsoleHandler()
    console.setLevel(level if rank == 0 else logging.WARNING)
    console.addFilter(lambda record: not getattr(record, "file_only", False))
    console.setFormatter(logging.Formatter("%(message)s" if rank == 0 else f"[rank {rank}] %(levelname)s %(message)s"))
    logger.addHandler(console)
    if rank == 0:
        with writing(output_dir / "log.txt"):
            file = logging.FileHandler(output_dir / "log.txt", encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(file)
    logger.setLevel(level)
    return logger

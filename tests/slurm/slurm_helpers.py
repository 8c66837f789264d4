"""A sweep in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Sweep:
    """`posttrain -m` in a process of its own, and the folder it fills."""

    def __init__(self, folder: Path, arguments: tuple[str, ...]) -> None:
        self.folder = folder / "sweep"
        self.environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        heeded = ["env", "--default-signal=INT"]  # processes in a shell's background ignore SIGINT, and hand that on
        command = [*heeded, sys.executable, "-m", "posttrain", "-m", *arguments, "hydra/launcher=slurm", f"output_dir={self.folder}"]
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,  # a background job that reads the terminal is stopped
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def until(self, ready: Callable[[], bool], seconds: float = 540, *, alive: bool = True) -> None:
        """Wait for something to become true while the sweep runs."""
        deadline = time.monotonic() + seconds
        while not ready():
            assert not alive or self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.05)

    def reached(self, run: str, step: int) -> Callable[[], bool]:
        """Whether a run has logged so many steps."""
        file = self.folder / run / "metrics.jsonl"
        return lambda: file.is_file() and file.read_bytes().count(b"\n") >= step

    def command(self, name: str) -> str:
        """What `posttrain NAME sweep=FOLDER` prints."""
        line = [sys.executable, "-m", "posttrain", name, f"sweep={self.folder}"]
        return subprocess.run(line, env=self.environment, capture_output=True, text=True, timeout=120, check=True).stdout

    def logs(self) -> str:
        """Everything that the jobs printed."""
        return "\n".join(file.read_text() for file in sorted(self.folder.glob(".slurm/*log.out")))

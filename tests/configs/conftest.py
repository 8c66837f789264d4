"""The command line as a subprocess, and config folders of one's own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import preloaded
import pytest

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "COLUMNS": "120"}


@dataclass(frozen=True)
class Outcome:
    """What a command line did. seconds: wall clock."""

    code: int
    out: str
    err: str
    seconds: float


Shell = Callable[..., Outcome]


@pytest.fixture(scope="session")
def importing() -> None:
    """The process that others are forked from has imported everything: no test's time is its."""
    preloaded.posttrain("--version", folder=Path.cwd(), **ENVIRONMENT).communicate(timeout=300)


@pytest.fixture
def posttrain(tmp_path: Path, importing: None) -> Shell:
    """Runs `python -m posttrain ARGUMENTS` in an empty folder, in a process that has imported everything."""

    def run(*arguments: str, folder: Path = tmp_path) -> Outcome:
        start = time.perf_counter()
        process = preloaded.posttrain(*arguments, folder=folder, **ENVIRONMENT)
        out, err = process.communicate(timeout=120)
        return Outcome(process.wait(), out, err, time.perf_counter() - start)

    return run


@pytest.fixture
def fresh(tmp_path: Path) -> Shell:
    """The same in a process that starts from nothing, as a user's does."""

    def run(*arguments: str) -> Outcome:
        start = time.perf_counter()
        command = [sys.executable, "-m", "posttrain", *arguments]
        environment = os.environ | ENVIRONMENT
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False)
        return Outcome(done.returncode, done.stdout, done.stderr, time.perf_counter() - start)

    return run

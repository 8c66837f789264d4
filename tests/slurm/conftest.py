"""A SLURM cluster that this machine reaches: `launchers/local_slurm start` makes one."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from slurm_helpers import Sweep


def _unreachable() -> str:
    """Why there is no cluster to test on; empty if there is one."""
    if shutil.which("sinfo") is None:
        return "SLURM is not installed (launchers/local_slurm start --install)"
    answer = subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True, timeout=60, check=False)
    return "" if answer.returncode == 0 else 'no SLURM cluster answers (eval "$(launchers/local_slurm start)")'


@pytest.fixture(scope="session")
def _cluster() -> None:
    if reason := _unreachable():
        pytest.skip(reason)


@pytest.fixture
def sweep(tmp_path: Path, _cluster: None) -> Iterator[Callable[..., Sweep]]:
    """Starts a sweep on the cluster; whatever is left of it at the end is cancelled."""
    started: list[Sweep] = []

    def start(*arguments: str) -> Sweep:
        started.append(Sweep(tmp_path, arguments))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.send_signal(signal.SIGKILL)
            one.process.communicate()
        if (one.folder / "sweep.json").is_file():
            one.command("cancel")

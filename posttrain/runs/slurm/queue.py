"""The cluster's queue: states of jobs, and cancelling them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Collection, Sequence

from posttrain.errors import ConfigError, Problem, UserError

SECONDS = 60
ENDED = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "REVOKED", "TIMEOUT", "PREEMPTED")
)


class NoAnswer(UserError):
    """The cluster's controller does not answer: it may be restarting, or this machine may not be part of a cluster that is up."""

    def __init__(self, why: str) -> None:
        super().__init__(Problem("SLURM", f"gives no answer: {why}", "is this a login node? does sinfo work?"))


def there() -> bool:
    """Whether this machine is part of a cluster."""
    return shutil.which("squeue") is not None


def require(command: str) -> None:
    """Raises ConfigError where this machine is not part of a cluster."""
    if not there():
        raise ConfigError(Problem(command, "this machine is not part of a SLURM cluster (there is no squeue)", "ask on a login node"))


def states(ids: Collection[str]) -> dict[str, str]:
    """State (`RUNNING`, ...) of each job that SLURM still knows; some minutes after its end it forgets a job.

    Raises:
        NoAnswer: the queue cannot be read.
    """
    arrays = sorted({slurm_id.split("_")[0] for slurm_id in ids})
    if not arrays:
        return {}
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T", f"--jobs={','.join(arrays)}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"squeue took more than {SECONDS} s") from None
    if answer.returncode != 0:
        if "Invalid job id" in answer.stderr:  # it has forgotten them all
            return {}
        raise NoAnswer((answer.stderr.strip().splitlines() or [f"squeue ended with {answer.returncode}"])[-1])
    found = dict(line.strip().split("|") for line in answer.stdout.splitlines() if "|" in line)
    return {slurm_id: found[slurm_id] for slurm_id in ids if slurm_id in found}


def cancel(ids: Sequence[str]) -> None:
    """Cancel jobs, running or not. Raises CalledProcessError where scancel refuses."""
    subprocess.run(["scancel", *ids], check=True, timeout=SECONDS)

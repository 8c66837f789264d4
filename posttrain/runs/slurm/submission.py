"""Jobs on their way into the queue: each is known to other shells as soon as SLURM has it, whatever comes in between."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from posttrain.errors import ConfigError, Problem
from posttrain.runs.slurm import follow
from posttrain.runs.slurm.cancelling import cancel
from posttrain.runs.sweep_record import SweepRecord

OF_A_SHELL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Submission:
    """A sweep's record while its jobs are submitted. new: SLURM ids of those that have been."""

    def __init__(self, record: SweepRecord) -> None:
        self.record = record
        self.new: list[str] = []

    def add(self, names: Sequence[Sequence[str]], submit: Callable[[], Sequence[str]]) -> Sequence[str]:
        """Submit jobs and write down which they are; returns their SLURM ids. names: what each is called in the record."""
        with _undisturbed():
            ids = submit()
            self.new += ids
            self.record = self.record.submitted({name: slurm_id for some, slurm_id in zip(names, ids, strict=True) for name in some})
            self.record.write()
        return ids


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Signals of a shell that is interrupted or lost wait until the block's end. For the main thread."""
    came: list[int] = []
    handlers = {number: signal.signal(number, lambda number, _frame: came.append(number)) for number in OF_A_SHELL}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, OF_A_SHELL)  # which sbatch inherits
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


@contextmanager
def submitting(submission: Submission) -> Iterator[None]:
    """Around all that is submitted for one command.

    Raises:
        ConfigError: sbatch refused a request, with its words; what had been submitted before is cancelled.
        LeftRunning: Ctrl-C; what had been submitted goes on.
    """
    from submitit.core.utils import FailedJobError

    try:
        yield
    except (subprocess.CalledProcessError, FailedJobError) as error:
        if submission.new:
            cancel(submission.record, submission.new)
        hint = "hydra.launcher.dry_run=true shows the request"
        raise ConfigError(Problem("hydra/launcher=slurm", _reason(error, len(submission.new)), hint)) from error
    except KeyboardInterrupt:
        if not submission.record.ids:
            raise
        told = (
            "not all jobs are submitted: the same command submits the others; those that are go on:",
            *follow.commands(submission.record),
        )
        print("\n".join(told), flush=True)
        raise follow.LeftRunning from None


def _reason(error: Exception, before: int) -> str:
    """What sbatch said, and what became of the jobs submitted before."""
    text = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
    cancelled = f"; the {before} submitted before it {'is' if before == 1 else 'are'} cancelled" if before else ""
    return f"sbatch refused a job{cancelled}: " + " ".join(str(text).split())

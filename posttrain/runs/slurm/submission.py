"""Jobs on their way into the queue: each is known to other shells as soon as SLURM has it, whatever comes in between."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from posttrain.errors import ConfigError, Problem
from posttrain.runs.slurm import follow, queue
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
        ConfigError: sbatch refused a request, with its words; what had been submitted before is cancelled, where SLURM answers.
        LeftRunning: Ctrl-C; what had been submitted goes on.
    """
    from submitit.core.utils import FailedJobError

    try:
        yield
    except (subprocess.CalledProcessError, FailedJobError) as error:
        text = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
        message = f"sbatch refused a job{_taken_back(submission)}: {' '.join(str(text).split())}"
        raise ConfigError(Problem("hydra/launcher=slurm", message, "hydra.launcher.dry_run=true shows the request")) from error
    except KeyboardInterrupt:
        if not submission.record.ids:
            raise
        told = (
            "not all jobs are submitted: the same command submits the others; those that are go on:",
            *follow.commands(submission.record),
        )
        print("\n".join(told), flush=True)
        raise follow.LeftRunning from None


def _taken_back(submission: Submission) -> str:
    """Cancels what has been submitted, and says so."""
    if not submission.new:
        return ""
    those = "the one job before it is" if len(submission.new) == 1 else f"the {len(submission.new)} jobs before it are"
    try:
        cancel(submission.record, submission.new)
    except queue.NoAnswer:
        return f" and SLURM gives no answer, so that {those} still there (posttrain cancel sweep={submission.record.folder})"
    return f"; {those} cancelled"

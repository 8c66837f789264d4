"""Waiting for submitted jobs, by the outcomes that they leave and by the cluster's queue."""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Callable, Iterator

from posttrain.runs.slurm import closing, queue
from posttrain.runs.slurm.request import LOGS
from posttrain.runs.sweep_record import JobRecord, Outcome, SweepRecord
from posttrain.runs.tracking.sync import send_rest

POLL_SECONDS = 1.0
QUEUE_EVERY = 5  # polls between looks at the queue, which the whole cluster shares
FAILED, CANCELLED = 1, 128 + signal.SIGTERM


class LeftRunning(KeyboardInterrupt):
    """The user stopped waiting; the jobs go on."""


def follow(record: SweepRecord, say: Callable[[str], None]) -> list[int]:
    """Wait for all jobs of a sweep; returns their exit codes, and says when each has ended.

    Raises:
        LeftRunning: Ctrl-C; nothing was cancelled.
    """
    codes: dict[str, int] = {}
    stages = len(record.stages)
    try:
        for job, code in _endings(record):
            log = f", see {record.folder / LOGS / f'{job.slurm_id}_0_log.out'}" if code == FAILED else ""
            codes |= {} if job.runs else {job.name: code}
            stages -= bool(job.runs)
            left = f"stages to come: {stages}" if job.runs else f"{len(codes)} of {len(record.jobs)}"
            say(f"{word(code)}: {job.name} (job {job.slurm_id}), {left}{log}")
    except KeyboardInterrupt:
        say("\n".join(("the jobs go on without this shell:", *commands(record))))
        raise LeftRunning from None
    return [codes[job.name] for job in record.jobs]


def commands(record: SweepRecord) -> tuple[str, str]:
    """How to come back to a sweep."""
    return f"  posttrain status sweep={record.folder}", f"  posttrain cancel sweep={record.folder}"


def word(code: int) -> str:
    """An exit code as the status of a run."""
    return "finished" if code == 0 else "stopped" if code in (128 + signal.SIGINT, CANCELLED) else "failed"


def _endings(record: SweepRecord) -> Iterator[tuple[JobRecord, int]]:
    """Each job with its exit code, when it has ended; stages that are jobs among them, before their pipelines."""
    waiting, lost = [*record.stages, *record.jobs], set[str]()
    chains = {run for stage in record.stages for run in stage.runs}
    for turn in itertools.count():
        look = turn % QUEUE_EVERY == QUEUE_EVERY - 1
        gone = ended_in_queue([job for job in waiting if job.name not in chains]) if look else {}
        for job in list(waiting):
            code = Outcome(job.file).read()
            if code is None and job.name in lost and job.name in gone:
                code = gone[job.name]
                closing.close(job, code)
            if code and job.runs:  # its batch script does so, too, where it lives long enough
                closing.close_stage(record, job, code)
            if code is not None:
                waiting.remove(job)
                send_rest(job.folder)
                yield job, code
        lost |= gone.keys()  # believed the second time: a file may reach us later than the queue's answer
        if not waiting:
            return
        time.sleep(POLL_SECONDS)


def ended_in_queue(jobs: list[JobRecord]) -> dict[str, int]:
    """Exit codes, by name, of the jobs that the queue says have ended, or no longer knows. Empty while the queue does not answer.

    A job that ended well has left its outcome, so without one it failed, unless somebody cancelled it.
    """
    try:
        states = queue.states([job.slurm_id for job in jobs if job.slurm_id])
    except queue.NoAnswer:
        return {}
    now = {job.name: states.get(job.slurm_id or "", "FAILED") for job in jobs}
    return {name: CANCELLED if state == "CANCELLED" else FAILED for name, state in now.items() if state in queue.ENDED}

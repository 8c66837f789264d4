"""Waiting for submitted jobs, by the outcomes that they leave and by the cluster's queue."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence

from posttrain.runs.slurm import closing, queue
from posttrain.runs.slurm.request import LOGS
from posttrain.runs.sweep_record import JobRecord, Outcome, SweepRecord
from posttrain.runs.tracking.sync import send_rest

POLL_SECONDS = 1.0
QUEUE_EVERY = 5  # polls between looks at the queue, which the whole cluster shares
FAILED = 1


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
    return "finished" if code == 0 else "stopped" if code in closing.CODES.values() else "failed"


def _endings(record: SweepRecord) -> Iterator[tuple[JobRecord, int]]:
    """Each job with its exit code, when it has ended; stages that are jobs among them, before their pipelines."""
    waiting, lost = [*record.stages, *record.jobs], set[str]()
    for turn in itertools.count():
        look = turn % QUEUE_EVERY == QUEUE_EVERY - 1
        gone = ended_in_queue([job for job in record.parts if job in waiting]) if look else {}
        for job in list(waiting):
            code = Outcome(job.file).read()
            if code is None and job.name in lost and job.name in gone:
                code = closing.close(job, gone[job.name])
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


def ended_in_queue(jobs: Sequence[JobRecord]) -> dict[str, int]:
    """Exit codes, by name, of the jobs that the queue says have ended, or no longer knows. Empty while the queue does not answer.

    A job that ended well has left its outcome, so without one it failed, unless somebody cancelled it, as where it never began.
    """
    try:
        states = queue.states([job.slurm_id for job in jobs if job.slurm_id])
    except queue.NoAnswer:
        return {}
    now = {job.name: states.get(job.slurm_id or "", "FAILED" if _has_begun(job) else "CANCELLED") for job in jobs}
    return {name: closing.CANCELLED if state == "CANCELLED" else FAILED for name, state in now.items() if state in queue.ENDED}


def _has_begun(job: JobRecord) -> bool:
    return (job.file.parents[1] / LOGS / f"{job.slurm_id}_0_log.out").is_file()


def settle(record: SweepRecord) -> None:
    """Write down the ends of jobs that nobody follows, and that could not do so themselves, and close the pipelines that need them.

    Waits some seconds where there are such jobs: as who follows does, it believes the queue the second time.
    """
    silent = [job for job in record.parts if job.slurm_id is not None and Outcome(job.file).read() is None]
    if lost := ended_in_queue(silent):
        time.sleep(QUEUE_EVERY * POLL_SECONDS)
        gone = ended_in_queue([job for job in silent if job.name in lost])
        for job in (job for job in silent if job.name in gone):
            closing.close(job, gone[job.name])
    for stage in record.stages:
        if code := Outcome(stage.file).read():
            closing.close_stage(record, stage, code)

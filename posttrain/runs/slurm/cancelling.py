"""Cancelling jobs of a sweep, and noting the end of those that can no longer do so themselves."""

from __future__ import annotations

from collections.abc import Collection

from posttrain.runs.slurm import closing, queue
from posttrain.runs.sweep_record import SweepRecord


def cancel(record: SweepRecord, ids: Collection[str]) -> dict[str, str]:
    """Cancel those of the jobs that have not ended; returns the state that each of them was in.

    One that runs notes its own end. One that waited cannot, and SLURM may forget it at once, so that is done here; for a pipeline where
    none of its stages runs any longer.

    Raises:
        NoAnswer: the queue cannot be read.
    """
    alive = {slurm_id: state for slurm_id, state in queue.states(record.ids).items() if state not in queue.ENDED}
    cancelled = {slurm_id: state for slurm_id, state in alive.items() if slurm_id in ids}
    if cancelled:
        queue.cancel(sorted(cancelled))
    waited = {slurm_id for slurm_id, state in cancelled.items() if state == "PENDING"}
    for job in record.parts:
        if job.slurm_id in waited:
            closing.close(job, closing.CANCELLED)
    for job in record.chains:
        own = {stage.slurm_id for stage in record.stages_of(job.name)}
        if own & waited and not own & (alive.keys() - waited):
            closing.close_pipeline(job, closing.CANCELLED)
    return cancelled

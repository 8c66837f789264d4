"""The batch script's last word on a job that did not end well: `python -m posttrain.runs.slurm.closing SWEEP SLURM_ID CODE`.

The leading task says itself how the run ended. Where it could not (killed, or another rank failed first), the outcome is written here, and
the run's record in MLflow is closed. Where not even the batch script could (the cluster ended it, too), whoever follows the job or asks for
its status does so.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

from posttrain.runs.base_config import load_config
from posttrain.runs.folder_lock import is_taken
from posttrain.runs.pipeline.chained import close_early
from posttrain.runs.signals import CONTINUED
from posttrain.runs.sweep_record import JobRecord, Outcome, SweepRecord, read_record
from posttrain.runs.tracking.sync import complete

WAIT_SECONDS = 60  # for the submitting shell to write down which job is which
CANCELLED = 128 + signal.SIGTERM
CODES = {128 + signal.SIGINT: 128 + signal.SIGINT, 128 + signal.SIGTERM: CANCELLED, CONTINUED: CANCELLED}


def close(job: JobRecord, code: int) -> int | None:
    """Write the outcome if there is none, and close the run's record; returns the outcome.

    None, and nothing is written, where another process trains in the folder, since the job ended: how that ends is its own to tell.
    """
    outcome = Outcome(job.file)
    if (ended := outcome.read()) is not None:
        return ended
    if is_taken(job.folder.parent if job.runs else job.folder):
        return None
    final = CODES.get(code, 1)
    outcome.write(final)
    if not is_taken(job.folder):  # a stage that another pipeline makes by now
        complete(job.folder, "failed" if final == 1 else "stopped")
    return final


def close_stage(record: SweepRecord, stage: JobRecord, code: int) -> int | None:
    """The same for a stage that is a job, and for the pipelines that cannot go on without it."""
    ended = close(stage, code)
    if ended:
        for job in (job for job in record.jobs if job.name in stage.runs):
            close_pipeline(job, ended)
    return ended


def close_pipeline(job: JobRecord, code: int) -> None:
    """Write down how a pipeline ended of which not all stages ended well; nothing where that is known."""
    outcome = Outcome(job.file)
    if outcome.read() is None:
        close_early(load_config(job.file), job.folder, "stopped" if code in CODES.values() else "failed")
        outcome.write(code)


def close_pipelines_of(file: Path, code: int) -> None:
    """The same by the job of a stage, which `file` describes: SLURM ends the batch script of a job that is cancelled with its tasks."""
    record = read_record(file.parents[1])
    for stage in (stage for stage in record.stages if stage.file == file):
        close_stage(record, stage, code)


def main(sweep: str, slurm_id: str, code: str) -> int:
    """Find the job and close it."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        record = read_record(Path(sweep))
        found = [job for job in record.parts if job.slurm_id == slurm_id]
        if found or time.monotonic() > deadline:
            break
        time.sleep(1)
    for job in found:
        print(f"posttrain: {job.name} ended with exit code {code}", flush=True)
        ended = close_stage(record, job, int(code)) if job.runs else close(job, int(code))
        if ended is None:
            print(f"posttrain: another process trains in {job.folder}, and will say how that ended", flush=True)
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

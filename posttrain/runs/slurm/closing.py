"""The batch script's last word on a job that did not end well: `python -m posttrain.runs.slurm.closing SWEEP SLURM_ID CODE`.

The leading task says itself how the run ended. Where it could not (killed, or another rank failed first), the outcome is written here, and
the run's record in MLflow is closed. Where not even the batch script could (the cluster ended it, too), whoever follows the job does so.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

from posttrain.runs.base_config import load_config
from posttrain.runs.pipeline.chained import close_early
from posttrain.runs.signals import CONTINUED
from posttrain.runs.sweep_record import JobRecord, Outcome, SweepRecord, read_record
from posttrain.runs.tracking.sync import complete

WAIT_SECONDS = 60  # for the submitting shell to write down which job is which
CODES = {128 + signal.SIGINT: 128 + signal.SIGINT, 128 + signal.SIGTERM: 128 + signal.SIGTERM, CONTINUED: 128 + signal.SIGTERM}


def close(job: JobRecord, code: int) -> None:
    """Write the outcome if there is none, and close the run's record."""
    outcome = Outcome(job.file)
    if outcome.read() is not None:
        return
    final = CODES.get(code, 1)
    outcome.write(final)
    complete(job.folder, "failed" if final == 1 else "stopped")


def close_stage(record: SweepRecord, stage: JobRecord, code: int) -> None:
    """The same for a stage that is a job, and for the pipelines that cannot go on without it."""
    close(stage, code)
    for job in (job for job in record.jobs if job.name in stage.runs):
        outcome = Outcome(job.file)
        if outcome.read() is None:
            outcome.write(Outcome(stage.file).read() or 1)
        close_early(load_config(job.file), job.folder, "stopped" if outcome.read() in CODES.values() else "failed")


def main(sweep: str, slurm_id: str, code: str) -> int:
    """Find the job and close it."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        record = read_record(Path(sweep))
        stages, jobs = ([job for job in some if job.slurm_id == slurm_id] for some in (record.stages, record.jobs))
        if stages or jobs or time.monotonic() > deadline:
            break
        time.sleep(1)
    for job in stages or jobs:
        print(f"posttrain: {job.name} ended with exit code {code}", flush=True)
    for stage in stages:
        close_stage(record, stage, int(code))
    for job in () if stages else jobs:
        close(job, int(code))
    return 0 if stages or jobs else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

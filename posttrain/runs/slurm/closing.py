"""The batch script's last word on a job that did not end well: `python -m posttrain.runs.slurm.closing SWEEP SLURM_ID CODE`.

The leading task says itself how the run ended. Where it could not (killed, or another rank failed first), the outcome is written here, and
the run's record in MLflow is closed. Where not even the batch script could (the cluster ended it, too), whoever follows the job does so.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

from posttrain.errors import ConfigError
from posttrain.runs.signals import CONTINUED
from posttrain.runs.sweep_record import JobRecord, Outcome, read_record
from posttrain.runs.tracking.journal import Journal
from posttrain.runs.tracking.sync import sync_run

WAIT_SECONDS = 60  # for the submitting shell to write down which job is which
CODES = {128 + signal.SIGINT: 128 + signal.SIGINT, 128 + signal.SIGTERM: 128 + signal.SIGTERM, CONTINUED: 128 + signal.SIGTERM}


def close(job: JobRecord, code: int) -> None:
    """Write the outcome if there is none, and close the run's record."""
    outcome = Outcome(job.file)
    if outcome.read() is not None:
        return
    final = CODES.get(code, 1)
    outcome.write(final)
    journal = Journal(job.folder)
    events = journal.events()
    if events and events[-1]["event"] != "finish":
        journal.append({"event": "finish", "time": time.time(), "status": "failed" if final == 1 else "stopped"})
    send_rest(job)


def send_rest(job: JobRecord) -> None:
    """Send MLflow what a run that has ended could not: the cluster may have ended it sooner than its store answered."""
    journal = Journal(job.folder)
    state = journal.state()
    if state is None or state.events >= len(journal.events()):
        return
    try:
        sync_run(journal)
    except ConfigError as error:  # the store is away, or the run's own sender is still at it
        print(error, file=sys.stderr)


def main(sweep: str, slurm_id: str, code: str) -> int:
    """Find the job and close it."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        found = [job for job in read_record(Path(sweep)).jobs if job.slurm_id == slurm_id]
        if found or time.monotonic() > deadline:
            break
        time.sleep(1)
    for job in found:
        print(f"posttrain: {job.name} ended with exit code {code}", flush=True)
        close(job, int(code))
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

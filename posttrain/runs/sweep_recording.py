"""Writing down the jobs of a sweep before they start: a config each, and which there are."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from posttrain.runs.config_yaml import as_yaml
from posttrain.runs.files import write_atomic
from posttrain.runs.slurm.live import Live
from posttrain.runs.sweep_jobs import Job
from posttrain.runs.sweep_record import JOBS, JobRecord, Outcome, SweepRecord


def recorded(jobs: Sequence[Job], folder: Path, parent: str | None, live: Live, first: int = 0) -> SweepRecord:
    """Writes each job's config into the sweep's folder, and which jobs there are. A job that an earlier command left in the cluster stays
    as it was recorded. first: the number of the first.

    Raises ConfigError where the cluster still runs something else in a job's folder.
    """
    numbers = (number for number in itertools.count(first) if str(number) not in live.files)
    entries = [live.job_of(job.config) or _written(job, folder / JOBS / f"{next(numbers)}.yaml") for job in jobs]
    (folder / JOBS / "closed").unlink(missing_ok=True)
    record = SweepRecord(folder, tuple(entries), jobs[0].config["tracking"], parent, live.stages)
    record.write()
    return record


def _written(job: Job, file: Path) -> JobRecord:
    file.parent.mkdir(parents=True, exist_ok=True)
    Outcome(file).clear()
    write_atomic(file, as_yaml(job.config))
    return JobRecord(job.name, Path(job.config["output_dir"]), file)

"""Jobs that an earlier command submitted for the same folder and that have not ended: they are waited for, and not submitted again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posttrain.errors import ConfigError, Problem
from posttrain.runs.base_config import load_config
from posttrain.runs.resume import OF_NUMBERS, differences
from posttrain.runs.slurm import queue
from posttrain.runs.sweep_record import FILE, JobRecord, Outcome, read_record


@dataclass(frozen=True)
class Live:
    """jobs: what is under way, a chain also where but a stage of its own is, by the folder of its run.
    stages: of their pipelines, and others that have not ended. ids: SLURM's, of what has not ended.
    """

    jobs: Mapping[Path, JobRecord] = field(default_factory=dict)
    stages: tuple[JobRecord, ...] = ()
    ids: frozenset[str] = frozenset()

    def job_of(self, config: Mapping[str, Any]) -> JobRecord | None:
        """The job in which this run is under way. Raises ConfigError where that is another run."""
        job = self.jobs.get(Path(config["output_dir"]))
        if job is None:
            return None
        changed = [problem.where for problem in differences(load_config(job.file), config, counted=OF_NUMBERS)]
        if changed or config["resume"] == "never":
            known = {part.slurm_id for part in (job, *own_stages(self.stages, job))} & self.ids
            message = (
                f"job {', '.join(sorted(filter(None, known)))} still trains there{', with other ' + ', '.join(changed) if changed else ''}"
            )
            raise ConfigError(Problem(f"output_dir={job.folder}", message, "wait for it, or: posttrain cancel sweep=..."))
        return job

    def id_of(self, job: JobRecord) -> str | None:
        """The SLURM id of a run's job, of a chain's last one; None where it is yet to be submitted."""
        return job.slurm_id if job.slurm_id in self.ids else None

    @property
    def files(self) -> set[str]:
        """Names of the files that they were started with, which must stay."""
        return {job.file.stem for job in self.jobs.values()} | {stage.file.stem.split("-")[0] for stage in self.stages}


def live_in(sweep: Path) -> Live:
    """What of a sweep's folder the cluster still has.

    Raises:
        NoAnswer: there were jobs, and the queue cannot be read.
    """
    if not (sweep / FILE).is_file() or not queue.there():
        return Live()
    record = read_record(sweep)
    states = queue.states(record.ids) if record.ids else {}
    known = {slurm_id for slurm_id, state in states.items() if state not in queue.ENDED}
    under_way = [job.slurm_id for job in (*record.stages, *record.jobs) if job.slurm_id in known and Outcome(job.file).read() is None]
    ids = frozenset(filter(None, under_way))
    jobs = [job for job in record.jobs if ids & {part.slurm_id for part in (job, *own_stages(record.stages, job))}]
    names = {job.name for job in jobs}
    stages = tuple(stage for stage in record.stages if stage.slurm_id in ids or names & set(stage.runs))
    return Live({job.folder: job for job in jobs}, stages, ids)


def own_stages(stages: Sequence[JobRecord], run: JobRecord) -> list[JobRecord]:
    """The stages that are jobs for this pipeline in the first place, and perhaps for others as well."""
    return [stage for stage in stages if stage.runs[:1] == (run.name,)]

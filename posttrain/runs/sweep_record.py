"""What a sweep leaves in its folder about its jobs, so that another shell can follow and cancel them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from posttrain.errors import ConfigError, Problem
from posttrain.runs.files import write_atomic

FILE = "sweep.json"
JOBS = ".jobs"


@dataclass(frozen=True)
class JobRecord:
    """name: the swept overrides. folder: the run's. file: its whole config. slurm_id: where SLURM runs it.

    Of a stage that is a job: key: what it makes. runs: names of the pipelines that need it, its own first; file: which stage of which
    pipeline it is.
    """

    name: str
    folder: Path
    file: Path
    slurm_id: str | None = None
    key: str | None = None
    runs: tuple[str, ...] = ()


@dataclass(frozen=True)
class SweepRecord:
    """tracking: the `tracking` node of its config. parent: its run in MLflow, to be closed when all jobs have ended.

    stages: those that are jobs of their own, in the order in which they were submitted; once a pipeline's last one is submitted, the
    pipeline in `jobs` has its id.
    """

    folder: Path
    jobs: tuple[JobRecord, ...]
    tracking: Mapping[str, Any]
    parent: str | None = None
    stages: tuple[JobRecord, ...] = ()

    @property
    def ids(self) -> list[str]:
        """SLURM's ids of all jobs, in the order in which they were submitted."""
        known = {job.slurm_id for job in (*self.stages, *self.jobs) if job.slurm_id}
        return sorted(known, key=lambda slurm_id: [int(part) for part in slurm_id.split("_")])

    @property
    def chains(self) -> tuple[JobRecord, ...]:
        """The pipelines whose stages are jobs."""
        names = {run for stage in self.stages for run in stage.runs}
        return tuple(job for job in self.jobs if job.name in names)

    @property
    def parts(self) -> tuple[JobRecord, ...]:
        """What is one job each: the stages of those, and all other runs."""
        return (*self.stages, *(job for job in self.jobs if job not in self.chains))

    def stages_of(self, run: str) -> list[JobRecord]:
        """The jobs of a pipeline's stages."""
        return [stage for stage in self.stages if run in stage.runs]

    def write(self) -> None:
        """Write it into the sweep's folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {**asdict(self), "folder": None}
        write_atomic(self.folder / FILE, json.dumps(content, indent=1, default=str) + "\n")

    def submitted(self, ids: Mapping[str, str]) -> SweepRecord:
        """The same with the SLURM ids of the jobs of these names."""

        def told(jobs: Sequence[JobRecord]) -> tuple[JobRecord, ...]:
            return tuple(replace(job, slurm_id=ids.get(job.name, job.slurm_id)) for job in jobs)

        return replace(self, jobs=told(self.jobs), stages=told(self.stages))

    def beside(self, earlier: Sequence[JobRecord], stages: Sequence[JobRecord] = ()) -> SweepRecord:
        """The same with the jobs of earlier records before it; a job that is named again counts once, as it is now."""

        def joined(before: Sequence[JobRecord], now: Sequence[JobRecord]) -> tuple[JobRecord, ...]:
            return tuple({job.name: job for job in (*before, *now)}.values())

        return replace(self, jobs=joined(earlier, self.jobs), stages=joined(stages, self.stages))


def jobs_so_far(folder: Path) -> tuple[JobRecord, ...]:
    """The jobs of a sweep that grows, also where a kill has left but some of them in its record: each has a file of its own."""
    files = sorted((folder / JOBS).glob("*.yaml"), key=lambda file: int(file.stem))
    folders = [Path(yaml.safe_load(file.read_text(encoding="utf-8"))["output_dir"]) for file in files]
    known = {job.file: job for job in (read_record(folder).jobs if (folder / FILE).is_file() else ())}
    return tuple(known.get(file, JobRecord(run.name, run, file)) for file, run in zip(files, folders, strict=True))


def stages_so_far(folder: Path) -> tuple[JobRecord, ...]:
    """The stages that were jobs of their own in a sweep that grows."""
    return read_record(folder).stages if (folder / FILE).is_file() else ()


def read_record(folder: Path) -> SweepRecord:
    """The record in a sweep's folder.

    Raises:
        ConfigError: there is none.
    """
    file = folder / FILE
    if not file.is_file():
        what = "no such folder" if not folder.is_dir() else f"holds no {FILE}, so it is not a sweep's folder"
        raise ConfigError(Problem(f"sweep={folder}", what, "give the folder that posttrain -m printed (outputs/sweeps/...)"))
    content = json.loads(file.read_text(encoding="utf-8"))
    jobs, stages = (tuple(map(_job, content.get(key, ()))) for key in ("jobs", "stages"))
    return SweepRecord(folder, jobs, content["tracking"], content["parent"], stages)


def _job(node: Mapping[str, Any]) -> JobRecord:
    return JobRecord(node["name"], Path(node["folder"]), Path(node["file"]), node["slurm_id"], node.get("key"), tuple(node.get("runs", ())))


class Outcome:
    """A job's exit code, in a file beside the job's own; absent until it has ended for good."""

    def __init__(self, file: Path) -> None:
        self.path = file.with_suffix(".outcome")

    def clear(self) -> None:
        """Forget an earlier one."""
        self.path.unlink(missing_ok=True)

    def write(self, code: int) -> None:
        """Say how the job ended."""
        write_atomic(self.path, f"{code}\n")

    def read(self) -> int | None:
        """The exit code, once there is one."""
        return int(self.path.read_text(encoding="utf-8")) if self.path.is_file() else None

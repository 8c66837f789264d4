"""Submitting through submitit: the batch script of a group of runs, and the group itself as a job array."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from submitit.slurm.slurm import SlurmExecutor

from posttrain.runs.slurm import task
from posttrain.runs.slurm.request import Request, parameters

FOLDER = ".slurm"


class Executor(SlurmExecutor):
    """submitit's executor for one request; made anywhere, so that a script can be shown without a cluster."""

    @classmethod
    def affinity(cls) -> int:
        """Whether it can be made: always."""
        return 1


def executor_of(request: Request, sweep: Path) -> Executor:
    """An executor that keeps its scripts and logs in the sweep's folder."""
    made = Executor(sweep / FOLDER, python=request.interpreter)
    made.update_parameters(**parameters(request, sweep))
    return made


def script(request: Request, sweep: Path, count: int) -> str:
    """The batch script of `count` runs."""
    executor = executor_of(request, sweep)
    if count > 1:
        executor.parameters["map_count"] = count
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def submit(request: Request, sweep: Path, files: Sequence[Path], allow_targets: Sequence[str]) -> list[str]:
    """Submit a run for each job file; returns the SLURM ids (`12_0`).

    Raises:
        CalledProcessError: sbatch refused the request; its words are on standard error.
    """
    executor = executor_of(request, sweep)
    jobs = executor.map_array(task.run, [str(file) for file in files], [list(allow_targets)] * len(files))
    return [job.job_id for job in jobs]


def log_file(sweep: Path, slurm_id: str) -> Path:
    """Where everything that a job prints goes."""
    return sweep / FOLDER / f"{slurm_id}_0_log.out"

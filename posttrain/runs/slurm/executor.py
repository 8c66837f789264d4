"""Submitting through submitit: the batch script of a group of runs, and the group itself.

Runs are jobs of their own, to which `scancel --signal` and `scontrol requeue` are simple; a job array is made only where no more than
`array_parallelism` of them may run at once, which SLURM offers for arrays alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from submitit.slurm.slurm import SlurmExecutor

from posttrain.runs.slurm import task
from posttrain.runs.slurm.request import LOGS, Request, parameters


class Executor(SlurmExecutor):
    """submitit's executor for one request; made anywhere, so that a script can be shown without a cluster."""

    @classmethod
    def affinity(cls) -> int:
        """Whether it can be made: always."""
        return 1


def executor_of(request: Request, sweep: Path) -> Executor:
    """An executor that keeps its scripts and logs in the sweep's folder."""
    made = Executor(sweep / LOGS, python=request.interpreter)
    made.update_parameters(**parameters(request, sweep))
    return made


def script(request: Request, sweep: Path, count: int) -> str:
    """The batch script of `count` runs."""
    executor = executor_of(request, sweep)
    if count > request.array_parallelism:
        executor.parameters["map_count"] = count
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def submit_stage(request: Request, sweep: Path, file: Path, allow_targets: Sequence[str]) -> str:
    """Submit one stage of a pipeline; returns the SLURM id.

    Raises:
        CalledProcessError: sbatch refused the request; its words are on standard error.
    """
    return executor_of(request, sweep).submit(task.run_stage, str(file), list(allow_targets)).job_id


def submit(request: Request, sweep: Path, files: Sequence[Path], allow_targets: Sequence[str]) -> list[str]:
    """Submit a run for each job file; returns the SLURM ids (`12`, in an array `12_0`).

    Raises:
        CalledProcessError: sbatch refused the request; its words are on standard error.
    """
    executor = executor_of(request, sweep)
    names, allowed = [str(file) for file in files], list(allow_targets)
    if len(files) > request.array_parallelism:
        return [job.job_id for job in executor.map_array(task.run, names, [allowed] * len(files))]
    return [executor.submit(task.run, name, allowed).job_id for name in names]

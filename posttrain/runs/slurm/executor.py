"""Submitting through submitit: the batch script of a group of runs, and the group itself.

Runs are jobs of their own, to which `scancel --signal` and `scontrol requeue` are simple; a job array is made only where no more than
`array_parallelism` of them may run at once, which SLURM offers for arrays alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from submitit.slurm.slurm import SlurmExecutor

from posttrain.runs.slurm.request import LOGS, Request, parameters

Action = Callable[[str, Sequence[str]], None]  # of each task of a job: `run` or `run_stage` of task.py


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


def batches(request: Request, count: int) -> list[range]:
    """Which of `count` equal runs are submitted together: all, as an array, or each by itself."""
    width = count if count > request.array_parallelism else 1
    return [range(first, first + width) for first in range(0, count, width)]


def submit(executor: Executor, action: Action, files: Sequence[Path], allow_targets: Sequence[str]) -> list[str]:
    """Submit a run or a stage for each of its files, all with one sbatch; returns the SLURM ids (`12`, in an array `12_0`).

    Raises:
        FailedJobError: sbatch refused the request, with its words.
    """
    names, allowed = [str(file) for file in files], list(allow_targets)
    if len(names) == 1:
        return [executor.submit(action, names[0], allowed).job_id]
    return [job.job_id for job in executor.map_array(action, names, [allowed] * len(names))]

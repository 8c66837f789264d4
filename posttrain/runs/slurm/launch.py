"""Runs of a sweep as SLURM jobs: grouped by what they ask for, all groups submitted at once, then waited for."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.errors import ConfigError, MissingExtra, Problem
from posttrain.runs.slurm import follow, queue
from posttrain.runs.slurm.request import Request, request_of
from posttrain.runs.sweep_record import SweepRecord
from posttrain.runs.validate import node_problems

TARGET = "posttrain.runs.slurm.request.Request"


def requests_of(launchers: Sequence[Mapping[str, Any]]) -> list[Request]:
    """The request of each run, from its resolved `hydra.launcher` node.

    Raises:
        ConfigError: a key is unknown or has a wrong value; this machine is not part of a cluster (unless it is a dry run).
        MissingExtra: submitit is not installed.
    """
    problems = [problem for launcher in launchers for problem in node_problems(dict(launcher), "hydra.launcher")]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    _require_submitit()
    requests = [request_of(launcher) for launcher in launchers]
    if not queue.there() and not requests[0].dry_run:
        hint = "start it on a login node; hydra.launcher.dry_run=true shows the batch script anywhere"
        raise ConfigError(Problem("hydra/launcher=slurm", "this machine is not part of a SLURM cluster (there is no squeue)", hint))
    return requests


def _require_submitit() -> None:
    from importlib.util import find_spec

    if find_spec("submitit") is None:
        raise MissingExtra("hydra/launcher=slurm", "slurm")


def groups(requests: Sequence[Request]) -> list[tuple[Request, list[int]]]:
    """Equal requests with the numbers of their runs, in the order in which they first come."""
    found: list[tuple[Request, list[int]]] = []
    for number, request in enumerate(requests):
        same = next((members for other, members in found if other == request), None)
        if same is None:
            found.append((request, [number]))
        else:
            same.append(number)
    return found


def show_scripts(requests: Sequence[Request], names: Sequence[str], sweep: Path) -> None:
    """Print the batch script of each group, and which runs it is for."""
    from posttrain.runs.slurm.executor import script

    for request, members in groups(requests):
        print("\n".join(("", f"# {len(members)} of {len(requests)} runs:", *(f"#   {names[number]}" for number in members))))
        print(script(request, sweep, len(members)))


def run(requests: Sequence[Request], record: SweepRecord, allow_targets: Sequence[str]) -> list[int]:
    """Submit all runs and wait for them; returns their exit codes.

    Raises:
        ConfigError: sbatch refused a request; what had been submitted before is cancelled.
        LeftRunning: Ctrl-C; the jobs go on.
    """
    submitted = _submitted(requests, record, allow_targets)
    ids = [job.slurm_id for job in submitted.jobs]
    print(
        "\n".join((f"submitted {len(ids)} runs as jobs {', '.join(map(str, ids))}; Ctrl-C leaves them running:", *follow.commands(record)))
    )
    return follow.follow(submitted, lambda line: print(line, flush=True))


def _submitted(requests: Sequence[Request], record: SweepRecord, allow_targets: Sequence[str]) -> SweepRecord:
    """The record with SLURM's ids, which is written after each group."""
    from submitit.core.utils import FailedJobError

    from posttrain.runs.slurm.executor import submit

    for request, members in groups(requests):
        try:
            ids = submit(request, record.folder, [record.jobs[number].file for number in members], allow_targets)
        except (subprocess.CalledProcessError, FailedJobError) as error:
            if earlier := [job.slurm_id for job in record.jobs if job.slurm_id]:
                queue.cancel(earlier)
            raise ConfigError(Problem("hydra/launcher=slurm", _reason(error), "hydra.launcher.dry_run=true shows the request")) from error
        record = record.submitted(dict(zip(members, ids, strict=True)))
        record.write()
    return record


def _reason(error: Exception) -> str:
    """What sbatch said."""
    text = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
    return "sbatch refused: " + " ".join(str(text).split())

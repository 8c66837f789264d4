"""Runs of a sweep as SLURM jobs: grouped by what they ask for, or in chains, all submitted at once, then waited for."""

from __future__ import annotations

import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from posttrain.errors import ConfigError, MissingExtra, Problem
from posttrain.runs.slurm import follow, queue
from posttrain.runs.slurm.chain import Link, Wish, dependency, depending, links_of, stages_recorded
from posttrain.runs.slurm.request import Request, request_of
from posttrain.runs.sweep_record import JobRecord, SweepRecord
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


def show_scripts(wishes: Sequence[Wish], sweep: Path) -> None:
    """Print the batch script of each group, and which runs it is for; in a sweep with chains, of each job, and what it waits for."""
    from posttrain.runs.slurm.executor import script

    if any(wish.is_chain for wish in wishes):
        links = links_of(wishes)
        for link in links:
            waits = [links[number].name for number in link.after]
            print(f"\n# {link.name}{', after ' + ' and '.join(waits) if waits else ''}:")
            print(script(depending(link.request, dependency(link, [f"ID_OF_{other.name}" for other in links])), sweep, 1))
        return
    for request, members in groups([wish.requests[0] for wish in wishes]):
        print("\n".join(("", f"# {len(members)} of {len(wishes)} runs:", *(f"#   {wishes[number].name}" for number in members))))
        print(script(request, sweep, len(members)))


def run(wishes: Sequence[Wish], record: SweepRecord, allow_targets: Sequence[str], live: Collection[str] = ()) -> list[int]:
    """Submit all runs and wait for them; returns their exit codes.

    live: jobs of an earlier command that have not ended; runs and stages that have one are waited for, and not submitted.

    Raises:
        ConfigError: sbatch refused a request; what had been submitted before is cancelled.
        LeftRunning: Ctrl-C; the jobs go on.
    """
    chained = any(wish.is_chain for wish in wishes)
    before = record.ids
    submitted = _chains_submitted(wishes, record, allow_targets, live) if chained else _submitted(wishes, record, allow_targets)
    ids = [slurm_id for slurm_id in submitted.ids if slurm_id not in before]
    told = [f"submitted as jobs {', '.join(ids)}"] * bool(ids) + [f"still there are jobs {', '.join(before)}"] * bool(before)
    print("\n".join((f"{len(wishes)} runs: {'; '.join(told)}. Ctrl-C leaves them running:", *follow.commands(record))), flush=True)
    return follow.follow(submitted, lambda line: print(line, flush=True))


def _submitted(wishes: Sequence[Wish], record: SweepRecord, allow_targets: Sequence[str]) -> SweepRecord:
    """The record with SLURM's ids, which is written after each group."""
    from posttrain.runs.slurm.executor import submit

    new, before = [number for number, job in enumerate(record.jobs) if job.slurm_id is None], record.ids
    for request, members in groups([wishes[number].requests[0] for number in new]):
        jobs = [record.jobs[new[member]] for member in members]
        with _cancelling([slurm_id for slurm_id in record.ids if slurm_id not in before]):
            ids = submit(request, record.folder, [job.file for job in jobs], allow_targets)
        record = record.submitted(dict(zip((job.name for job in jobs), ids, strict=True)))
        record.write()
    return record


def _chains_submitted(wishes: Sequence[Wish], record: SweepRecord, allow_targets: Sequence[str], live: Collection[str]) -> SweepRecord:
    """The same where stages of pipelines are jobs, which wait for each other; the record is written after each job."""
    from posttrain.runs.pipeline.chained import prepare
    from posttrain.runs.slurm.executor import submit, submit_stage

    for wish in (wish for wish in wishes if wish.is_chain and wish.slurm_id is None):
        prepare(dict(wish.config), Path(wish.config["output_dir"]))
    links = links_of(wishes, [stage for stage in record.stages if stage.slurm_id in live])
    before, record = record.ids, stages_recorded(record, links)
    ids: list[str] = []
    for link in links:
        if link.slurm_id is None:
            request = depending(link.request, dependency(link, ids))
            with _cancelling([slurm_id for slurm_id in ids if slurm_id not in before]):
                if link.stage is None:
                    ids += submit(request, record.folder, [_file_of(link, record.jobs)], allow_targets)
                else:
                    ids.append(submit_stage(request, record.folder, _file_of(link, record.stages), allow_targets))
        else:
            ids.append(link.slurm_id)
        run = record.jobs[link.run].name if link.run is not None else link.name
        record = record.submitted({link.name: ids[-1], run: ids[-1]})
        record.write()
    return record


def _file_of(link: Link, jobs: Sequence[JobRecord]) -> Path:
    return next(job.file for job in jobs if job.name == link.name)


@contextmanager
def _cancelling(ids: Sequence[str]) -> Iterator[None]:
    """Where sbatch refuses inside, these jobs, which were submitted before, are cancelled, and the user is told its words."""
    from submitit.core.utils import FailedJobError

    try:
        yield
    except (subprocess.CalledProcessError, FailedJobError) as error:
        if ids:
            queue.cancel(ids)
        raise ConfigError(Problem("hydra/launcher=slurm", _reason(error), "hydra.launcher.dry_run=true shows the request")) from error


def _reason(error: Exception) -> str:
    """What sbatch said."""
    text = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
    return "sbatch refused: " + " ".join(str(text).split())

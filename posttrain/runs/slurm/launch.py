"""Runs of a sweep as SLURM jobs: grouped by what they ask for, or in chains, all submitted at once, then waited for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from posttrain.errors import ConfigError, MissingExtra, Problem
from posttrain.runs.slurm import follow, queue
from posttrain.runs.slurm.chain import Link, Wish, dependency, depending, links_of, stages_recorded
from posttrain.runs.slurm.live import own_stages
from posttrain.runs.slurm.request import Request, request_of
from posttrain.runs.slurm.submission import Submission, submitting
from posttrain.runs.sweep_record import JobRecord, Outcome, SweepRecord
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
        ConfigError: sbatch refused a request; what had been submitted before is cancelled, where SLURM answers.
        LeftRunning: Ctrl-C; the jobs that are submitted go on.
    """
    before, submission = record.ids, Submission(record)
    with submitting(submission):
        if any(wish.is_chain for wish in wishes):
            _submit_chains(wishes, submission, allow_targets, live)
        else:
            _submit_runs(wishes, submission, allow_targets)
    told = {"submitted as": submission.new, "still there are": before}
    words = "; ".join(f"{what} jobs {', '.join(ids)}" for what, ids in told.items() if ids)
    print("\n".join((f"{len(wishes)} runs: {words}. Ctrl-C leaves them running:", *follow.commands(record))), flush=True)
    return follow.follow(submission.record, lambda line: print(line, flush=True))


def _submit_runs(wishes: Sequence[Wish], submission: Submission, allow_targets: Sequence[str]) -> None:
    """Submit all runs that have no job yet."""
    from posttrain.runs.slurm import task
    from posttrain.runs.slurm.executor import batches, executor_of, submit

    new = [(wish.requests[0], job) for wish, job in zip(wishes, submission.record.jobs, strict=True) if wish.slurm_id is None]
    for request, members in groups([request for request, _ in new]):
        executor, jobs = executor_of(request, submission.record.folder), [new[member][1] for member in members]
        for batch in batches(request, len(jobs)):
            some = [jobs[number] for number in batch]
            submission.add([[job.name] for job in some], partial(submit, executor, task.run, [job.file for job in some], allow_targets))


def _submit_chains(wishes: Sequence[Wish], submission: Submission, allow_targets: Sequence[str], live: Collection[str]) -> None:
    """The same where stages of pipelines are jobs, which wait for each other."""
    from posttrain.runs.pipeline.chained import prepare
    from posttrain.runs.slurm import task
    from posttrain.runs.slurm.executor import executor_of, submit

    record = submission.record
    for wish, job in zip(wishes, record.jobs, strict=True):
        if wish.is_chain and wish.slurm_id is None:
            Outcome(job.file).clear()
            if not any(stage.slurm_id in live for stage in own_stages(record.stages, job)):  # which has opened it, and may be training
                prepare(dict(wish.config), Path(wish.config["output_dir"]))
    links = links_of(wishes, [stage for stage in record.stages if stage.slurm_id in live])
    submission.record = record = stages_recorded(record, links)
    ids: list[str] = []
    for link in links:
        if link.run is None or link.slurm_id is not None:
            ids.append(str(link.slurm_id))
            continue
        executor = executor_of(depending(link.request, dependency(link, ids)), record.folder)
        action, jobs = (task.run, record.jobs) if link.stage is None else (task.run_stage, record.stages)
        names = [link.name, record.jobs[link.run].name] if link.is_last else [link.name]
        ids += submission.add([names], partial(submit, executor, action, [_file_of(link, jobs)], allow_targets))


def _file_of(link: Link, jobs: Sequence[JobRecord]) -> Path:
    return next(job.file for job in jobs if job.name == link.name)

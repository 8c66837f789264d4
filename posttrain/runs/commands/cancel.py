"""`posttrain cancel sweep=DIR`: cancels the SLURM jobs of a sweep, those that wait and those that run.

A run that is cancelled saves a checkpoint first; the same command that started the sweep continues it.
"""

from __future__ import annotations

from pathlib import Path

from posttrain.errors import ConfigError, Problem
from posttrain.runs.arguments import bind
from posttrain.runs.commands.arguments import key_values
from posttrain.runs.commands.table import Call
from posttrain.runs.signatures import Parameter


def run(call: Call) -> int:
    """Cancels, says what, and returns the exit code."""
    arguments = bind(key_values(call), {"sweep": Parameter("sweep", str, required=True)}, command="cancel")
    from posttrain.runs.slurm import queue
    from posttrain.runs.slurm.follow import CANCELLED
    from posttrain.runs.sweep_record import Outcome, read_record

    record = read_record(Path(arguments["sweep"]).expanduser().absolute())
    ids = record.ids
    if not ids:
        raise ConfigError(Problem(f"sweep={record.folder}", "has no SLURM jobs", "end it with Ctrl-C where it was started"))
    queue.require("cancel")
    alive = {slurm_id: state for slurm_id, state in queue.states(ids).items() if state not in queue.ENDED}
    if alive:
        queue.cancel(sorted(alive))
    for job in record.jobs:
        own = {stage.slurm_id for stage in record.stages_of(job.name)} or {job.slurm_id}
        states = [alive[slurm_id] for slurm_id in own if slurm_id in alive]
        if states and set(states) == {"PENDING"}:  # it leaves no outcome of its own, and SLURM may forget it at once
            Outcome(job.file).write(CANCELLED)
    for job in (*record.stages, *(job for job in record.jobs if not record.stages_of(job.name))):
        if (state := alive.get(job.slurm_id or "")) is not None:
            if state == "PENDING":
                Outcome(job.file).write(CANCELLED)
            print(f"cancelled {job.name} (job {job.slurm_id}, {state.lower()})")
    print(f"{len(alive)} of {len(ids)} jobs cancelled; the others had ended")
    return 0

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
    from posttrain.runs.sweep_record import read_record

    record = read_record(Path(arguments["sweep"]).expanduser().absolute())
    ids = [job.slurm_id for job in record.jobs if job.slurm_id]
    if not ids:
        raise ConfigError(Problem(f"sweep={record.folder}", "has no SLURM jobs", "end it with Ctrl-C where it was started"))
    queue.require("cancel")
    alive = {slurm_id: state for slurm_id, state in queue.states(ids).items() if state not in queue.ENDED}
    if alive:
        queue.cancel(sorted(alive))
    names = {job.slurm_id: job.name for job in record.jobs}
    for slurm_id, state in alive.items():
        print(f"cancelled {names[slurm_id]} (job {slurm_id}, {state.lower()})")
    print(f"{len(alive)} of {len(ids)} jobs cancelled; the others had ended")
    return 0

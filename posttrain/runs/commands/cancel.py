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
    from posttrain.runs.slurm.cancelling import cancel
    from posttrain.runs.sweep_record import read_record

    record = read_record(Path(arguments["sweep"]).expanduser().absolute())
    ids = record.ids
    if not ids:
        raise ConfigError(Problem(f"sweep={record.folder}", "has no SLURM jobs", "end it with Ctrl-C where it was started"))
    queue.require("cancel")
    cancelled = cancel(record, ids)
    for job in record.parts:
        if (state := cancelled.get(job.slurm_id or "")) is not None:
            print(f"cancelled {job.name} (job {job.slurm_id}, {state.lower()})")
    print(f"{len(cancelled)} of {len(ids)} jobs cancelled; the others had ended")
    return 0

"""`posttrain status sweep=DIR`: the jobs of a sweep, also of one that another shell started: state in SLURM, status, step and loss.

If nobody waited for the jobs, the end of those that could not note it themselves is written down, and when all have ended, the sweep's
run in MLflow is closed.
"""

from __future__ import annotations

from pathlib import Path

from posttrain.runs.arguments import bind
from posttrain.runs.commands.arguments import key_values
from posttrain.runs.commands.table import Call
from posttrain.runs.signatures import Parameter


def run(call: Call) -> int:
    """Prints the table and returns the exit code."""
    arguments = bind(key_values(call), {"sweep": Parameter("sweep", str, required=True)}, command="status")
    from posttrain.runs import report, sweep_status
    from posttrain.runs.slurm.follow import settle
    from posttrain.runs.slurm.queue import NoAnswer
    from posttrain.runs.sweep_record import read_record

    record = read_record(Path(arguments["sweep"]).expanduser().absolute())
    try:
        states = sweep_status.slurm_states(record)
    except NoAnswer as error:
        states = None
        print(f"{error}; what follows is what the files say")
    if states is not None:
        settle(record)
    rows = sweep_status.rows(record, states)
    report.console().print(sweep_status.table(record, rows))
    sweep_status.close_parent(record, rows)
    return 0

"""`posttrain sync run=DIR`: sends to MLflow what a run, or any run below a folder, could not send."""

from __future__ import annotations

from pathlib import Path

from posttrain.runs.arguments import bind
from posttrain.runs.commands.arguments import key_values
from posttrain.runs.commands.table import Call
from posttrain.runs.signatures import Parameter


def run(call: Call) -> int:
    """Sends, and prints one line a run; returns the exit code."""
    arguments = bind(key_values(call), {"run": Parameter("run", str, required=True)}, command="sync")
    from posttrain.runs.tracking.sync import sync

    for report in sync(Path(arguments["run"]).expanduser()):
        print(report)
    return 0

"""`posttrain eval run=DIR suite=NAME [key=value ...]`: evaluates the artifact of a run.

`posttrain list evaluation/suite` shows the suites. Further keys (limit=100, ...) belong to the suite.
"""

from __future__ import annotations

from posttrain.runs.commands.arguments import key_values
from posttrain.runs.commands.table import Call


def run(call: Call) -> int:
    """Evaluates and returns the exit code."""
    args = key_values(call)
    from posttrain.runs import evaluate

    return evaluate.main(args)

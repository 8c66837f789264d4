"""`posttrain export run=DIR to=DIR [merge=true]`: writes an artifact as a plain Hugging Face folder."""

from __future__ import annotations

from posttrain.runs.commands.arguments import key_values
from posttrain.runs.commands.table import Call


def run(call: Call) -> int:
    """Exports and returns the exit code."""
    args = key_values(call)
    from posttrain.runs import export

    return export.main(args)

"""`posttrain constitution data=PATH_OR_NAME to=DIR [key=value ...]`: makes data by critique and revision (Constitutional AI).

The model answers every prompt, criticises its answer by a principle drawn at random, and rewrites it. DIR/sft.jsonl gets the
rewritten answers, DIR/pairs.jsonl pairs of them (chosen) with the first ones (rejected). The same command continues where it stopped.

Who writes: run=DIR (a run's artifact), backend=local path=MODEL, backend=openai url=http://... model=NAME, or backend=scripted.
Further keys: principles=FILE.yaml (a list of texts), rounds=1, limit=100, seed=0, batch=16, and those of the backend (temperature ...).
"""

from __future__ import annotations

from posttrain.runs.commands.arguments import key_values
from posttrain.runs.commands.table import Call


def run(call: Call) -> int:
    """Writes the data and returns the exit code."""
    args = key_values(call)
    from posttrain.runs import constitution

    return constitution.main(args)

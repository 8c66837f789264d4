"""`posttrain compare study=DIR` or `runs=[A,B,...]`: which arm is better, by how much, at what cost, and whether the difference is real.

study: the folder of a study; its study.json names the arms and what decides, the report goes into DIR/compare and to its MLflow parent.
runs: folders of finished runs; the folder of a sweep stands for all runs in it. Runs with the same config but for the seed are one arm.
metric=eval/exact_match: what decides; as in result.json, or eval/SUITE/NAME after `posttrain eval` on each.
smallest=0.01: the smallest difference that matters. baseline=DIR_OR_ARM: compared with; else the best. better=higher or lower.
to=DIR: where compare.html, compare.json and the plots go; else a new folder under outputs/compare.

Where runs kept the scores of single examples (all do since evaluations write eval/*examples.parquet), arms are compared on the same
examples; else by the final values of their seeds alone. Two arms with two seeds each are the least that says anything of methods.
"""

from __future__ import annotations

from posttrain.runs.arguments import bind, parameters_of
from posttrain.runs.commands.arguments import key_values
from posttrain.runs.commands.table import Call


def run(call: Call) -> int:
    """Compares and returns the exit code."""
    arguments = bind(key_values(call), parameters_of("posttrain.runs.comparison.command.compare"), command="compare")
    from posttrain.runs.comparison.command import compare

    compare(**arguments)
    return 0

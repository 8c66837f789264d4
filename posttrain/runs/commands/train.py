"""`posttrain [overrides]`: checks everything, then trains; with -m runs a sweep, with study=NAME a study."""

from __future__ import annotations

from posttrain.runs.check import compose_and_check
from posttrain.runs.commands.table import Call, is_study


def run(call: Call) -> int:
    """Trains and returns the exit code. Without any argument: the quickstart."""
    if is_study(call.overrides):
        from posttrain.runs.study.run import run_study

        return run_study(call)
    if call.multirun:
        from posttrain.runs.sweep import run_sweep

        return run_sweep(call)
    config = compose_and_check(call.overrides, config_dirs=call.config_dirs, base=call.base, allow_targets=call.allow_targets)
    from posttrain.runs.job import run_job

    return run_job(config, allow_targets=call.allow_targets)

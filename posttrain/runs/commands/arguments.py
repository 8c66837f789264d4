"""`key=value` arguments of the commands that are not runs."""

from __future__ import annotations

from typing import Any

from posttrain.errors import ConfigError, Problem
from posttrain.runs.commands.table import Call
from posttrain.runs.overrides import read


def key_values(call: Call) -> dict[str, Any]:
    """The arguments as values; `a,b` means a list.

    Raises:
        ConfigError: an argument is no key=value, or a flag that only runs know was given.
    """
    problems = [Problem(flag, "is for runs, this command takes key=value only") for flag in _run_flags(call)]
    values: dict[str, Any] = {}
    for line in call.arguments:
        override = read(line)
        if isinstance(override, Problem):
            problems.append(override)
        elif override.is_delete() or override.is_add() or override.is_force_add():
            problems.append(Problem(line, "expected key=value", "+ and ~ are for runs"))
        else:
            values[override.key_or_group] = list(override.sweep_iterator()) if override.is_discrete_sweep() else override.value()
    if problems:
        raise ConfigError(problems)
    return values


def _run_flags(call: Call) -> list[str]:
    given = {"--config": call.base, "--config-dir": call.config_dirs, "--allow-target": call.allow_targets}
    return [flag for flag, value in given.items() if value]

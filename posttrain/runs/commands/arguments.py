"""`key=value` arguments of the commands that are not runs."""

from __future__ import annotations

import re
from typing import Any

from hydra.core.override_parser.types import Override

from posttrain.errors import ConfigError, Problem
from posttrain.runs.commands.table import Call
from posttrain.runs.overrides import read

WHOLE = ("run", "study", "sweep", "to", "against", "baseline", "key")  # name one folder, file or arm, with whatever signs it has
PLAIN = re.compile(r"([A-Za-z_][\w.]*)=(.+)", re.DOTALL)
OPEN, CLOSE, QUOTES = "[{(", "]})", "'\""


def key_values(call: Call) -> dict[str, Any]:
    """The arguments as values; `a,b` means a list. Folders need no quotes, also where `=` is in their names, as runs of studies have it.

    Raises:
        ConfigError: an argument is no key=value, or a flag that only runs know was given.
    """
    problems = [Problem(flag, "is for runs, this command takes key=value only") for flag in _run_flags(call)]
    values: dict[str, Any] = {}
    for line in call.arguments:
        override = read(line)
        if (given := _unquoted(line, override)) is not None:
            values |= given
        elif isinstance(override, Problem):
            problems.append(override)
        elif override.is_delete() or override.is_add() or override.is_force_add():
            problems.append(Problem(line, "expected key=value", "+ and ~ are for runs"))
        else:
            values[override.key_or_group] = list(override.sweep_iterator()) if override.is_discrete_sweep() else override.value()
    if problems:
        raise ConfigError(problems)
    return values


def _unquoted(line: str, override: Override | Problem) -> dict[str, Any] | None:
    """The argument as it stands, where it names a folder or cannot be read in Hydra's grammar; None where that grammar holds."""
    match = PLAIN.fullmatch(line)
    if match is None:
        return None
    key, text = match[1], match[2]
    if key in WHOLE:
        value = text if isinstance(override, Problem) or override.is_sweep_override() else override.value()
        return {key: value if isinstance(value, str | None) else text}
    if not isinstance(override, Problem):
        return None
    parts = split(text[1:-1] if (listed := text[0] == "[" and text[-1] == "]") else text)
    return None if parts is None else {key: parts if listed or len(parts) > 1 else parts[0]}


def split(text: str) -> list[str] | None:
    """The text at its commas outside brackets and quotes; None where one of these does not end."""
    parts, depth, quote = [""], 0, ""
    for sign in text:
        quote = (sign if sign in QUOTES else "") if not quote else "" if sign == quote else quote
        depth += 0 if quote else (sign in OPEN) - (sign in CLOSE)
        if sign == "," and not depth and not quote:
            parts.append("")
        elif sign not in QUOTES:
            parts[-1] += sign
    return None if depth or quote else [part.strip() for part in parts]


def _run_flags(call: Call) -> list[str]:
    given = {"--config": call.base, "--config-dir": call.config_dirs, "--allow-target": call.allow_targets}
    return [flag for flag, value in given.items() if value]

"""`posttrain list [group]`: the options of every group."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from posttrain.errors import ConfigError, Problem
from posttrain.runs import options, report, suggest
from posttrain.runs.commands.table import Call


def run(call: Call) -> int:
    """Prints the options of the groups named, or of all groups."""
    folders = options.search_path(call.config_dirs)
    groups = options.groups(folders)
    asked = [argument.replace(".", "/") for argument in call.arguments]
    unknown = [
        Problem(f"list {name}", "there is no such group", suggest.hint(name, groups, most=40)) for name in asked if name not in groups
    ]
    if unknown:
        raise ConfigError(unknown)
    console = report.console()
    for group in asked or groups:
        console.print(f"[bold]{group}=[/]")
        console.print("\n".join(option_lines(group, folders)) + "\n", markup=False)
    return 0


def option_lines(group: str, folders: Sequence[Path]) -> list[str]:
    """One line an option: its name and its description."""
    found = options.options(folders, group)
    width = max(len(option.name) for option in found)
    return [f"  {option.name:<{width}}  {option.description}" for option in found]

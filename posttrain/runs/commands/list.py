"""`posttrain list [group]`: the options of every group."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from posttrain.errors import ConfigError, Problem
from posttrain.runs import options, suggest
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
    console = Console(highlight=False, soft_wrap=True)
    for group in asked or groups:
        console.print(table(group, folders))
    return 0


def table(group: str, folders: Sequence[Path]) -> Table:
    """Options of one group: name and description."""
    shown = Table(title=f"{group}=", title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False, padding=(0, 2))
    shown.add_column(style="cyan", no_wrap=True)
    shown.add_column(no_wrap=True, overflow="ignore")
    for option in options.options(folders, group):
        shown.add_row("  " + option.name, option.description)
    return shown

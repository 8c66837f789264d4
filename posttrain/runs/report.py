"""Shows the user's errors: one line each, at most one screen."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console

from posttrain.errors import Problem

SCREEN = 30
WIDE = 200


def console() -> Console:
    """For tables on stdout: as wide as the terminal, and wide enough for whole names where there is none (a pipe, a log)."""
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDE)


def lines(problems: Sequence[Problem], *, screen: int = SCREEN) -> list[str]:
    """One line a problem, duplicates once; what does not fit on the screen is counted by the place it is about."""
    shown = list(dict.fromkeys(" ".join(str(problem).split()) for problem in problems))
    if len(shown) <= screen:
        return shown
    rest = shown[screen - 1 :]
    return [*shown[: screen - 1], f"... and {len(rest)} more"]


def show(problems: Sequence[Problem], stream: TextIO | None = None, *, started: bool = False) -> None:
    """Writes the problems to `stream` (default: stderr) under a line that says how many there are, and whether something was started."""
    text = lines(problems)
    count = len(set(map(str, problems)))
    head = "posttrain: " + ("1 problem" if count == 1 else f"{count} problems") + ("" if started else ", nothing was started")
    print("\n".join([head, *(f"  {line}" for line in text)]), file=stream or sys.stderr)

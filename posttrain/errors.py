"""Errors that are the user's to mend: they end a command with exit code 2 and no traceback."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, in words a user can act on.

    where: the config key (``optimizer.lr``), the command-line override, or ``file:row``.
    message: what is wrong and what was expected.
    hint: what to do about it (nearest valid name, command to run), or empty.
    """

    where: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" + (f" ({self.hint})" if self.hint else "")


class UserError(Exception):
    """The config or the data is wrong. Carries every problem that was found, not only the first."""

    def __init__(self, problems: Sequence[Problem] | Problem):
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class ConfigError(UserError):
    """The configuration is wrong."""


class DataError(UserError):
    """A data source is missing, broken, empty or of an unknown format; `where` names file and row."""


class MissingExtra(UserError):
    """An optional dependency is needed and not installed."""

    def __init__(self, needed_by: str, extra: str):
        super().__init__(Problem(needed_by, f"needs the extra '{extra}'", f"pip install 'posttrain[{extra}]'"))

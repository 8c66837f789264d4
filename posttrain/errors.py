"""Errors that are the user's to mend: they end a command with exit code 2 and no traceback."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


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
    """The config or the data is wrong. Carries every problem that was found, not only the first.

    started: whether something had been computed before it was found.
    """

    started = False

    def __init__(self, problems: Sequence[Problem] | Problem):
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by its problems: errors travel from worker processes."""
        return _rebuilt, (type(self), self.problems, self.started)


def _rebuilt(kind: type[UserError], problems: tuple[Problem, ...], started: bool) -> UserError:
    error = kind.__new__(kind)
    UserError.__init__(error, problems)
    error.started = started
    return error


@contextmanager
def after_start() -> Iterator[None]:
    """Around what comes when something was computed already: a user's error that leaves the block says so."""
    try:
        yield
    except UserError as error:
        error.started = True
        raise


class ConfigError(UserError):
    """The configuration is wrong."""


class DataError(UserError):
    """A data source is missing, broken, empty or of an unknown format; `where` names file and row."""


class MissingExtra(UserError):
    """An optional dependency is needed and not installed."""

    def __init__(self, needed_by: str, extra: str):
        super().__init__(Problem(needed_by, f"needs the extra '{extra}'", f"pip install 'posttrain[{extra}]'"))

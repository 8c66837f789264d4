"""Rows as they leave a file: readable ones, and broken ones with the reason."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One readable row. file: as the user named it. line: from 1; the line of the file where the row starts, or its number."""

    value: dict[str, Any]
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class BadRow:
    """One row that cannot be read, and why."""

    file: str
    line: int
    reason: str

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"


def row_or_bad(value: Any, file: str, line: int) -> Row | BadRow:
    """A row must be an object with named fields."""
    if isinstance(value, dict):
        return Row(value, file, line)
    return BadRow(file, line, f"expected an object with named fields, got {type(value).__name__}")


def without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    """A row of an Arrow table without the null fields inside its values.

    A table gives every object of a column the fields of all of them, so that a null there says nothing: {"city": "Paris"} beside
    {"zip": 1} is read as {"city": "Paris", "zip": None}. The row's own fields stay.
    """
    return {name: _dense(value) for name, value in row.items()}


def _dense(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _dense(item) for name, item in value.items() if item is not None}
    return [_dense(item) for item in value] if isinstance(value, list) else value


def numbered(values: Iterable[Any], file: str) -> Iterator[Row | BadRow]:
    """Rows of a container without lines, numbered from 1."""
    for number, value in enumerate(values, 1):
        yield row_or_bad(value, file, number)

"""What a format is, how it registers, and how a source's format is detected from a few of its rows."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from posttrain.data.rows import Row
from posttrain.discovery import import_modules
from posttrain.errors import ConfigError, DataError, Problem
from posttrain.types import Example

Fields = Mapping[str, Any]


class RowError(ValueError):
    """A row does not hold what its format needs; the message says what."""


@dataclass(frozen=True)
class Filtered:
    """A row that the format's options leave out on purpose, and why."""

    reason: str


Convert = Callable[..., Example | Sequence[Example] | Filtered]


@dataclass(frozen=True)
class Format:
    """A family of rows.

    name: for `data.format=`. kind: conversation, text, preference ... convert: row and options to an Example, or to
        several; raises RowError.
    needs: sets of fields, one of which must be there with non-null values. absent: fields that rule the format out. accepts: a further
    look at the values.
    """

    name: str
    kind: str
    convert: Convert
    needs: tuple[frozenset[str], ...]
    absent: frozenset[str] = frozenset()
    accepts: Callable[[Fields], bool] = field(default=lambda _: True)

    def matched(self, row: Fields) -> frozenset[str] | None:
        """The set of fields by which `row` (without null values) is of this format, or None."""
        if self.absent & row.keys() or not any(need <= row.keys() for need in self.needs) or not self.accepts(row):
            return None
        return max((need for need in self.needs if need <= row.keys()), key=len)


_FORMATS: dict[str, Format] = {}


def register(
    name: str,
    *,
    needs: Iterable[Iterable[str]],
    kind: str = "conversation",
    absent: Iterable[str] = (),
    accepts: Callable[[Fields], bool] | None = None,
) -> Callable[[Convert], Convert]:
    """Register the decorated function as the format `name`; its keyword-only parameters are the format's options."""

    def add(convert: Convert) -> Convert:
        if name in _FORMATS and _FORMATS[name].convert.__module__ != convert.__module__:
            raise ValueError(f"two formats are called {name}")
        extra = {} if accepts is None else {"accepts": accepts}
        _FORMATS[name] = Format(name, kind, convert, tuple(map(frozenset, needs)), frozenset(absent), **extra)
        return convert

    return add


@cache
def formats() -> Mapping[str, Format]:
    """Every format by name; imports the modules of this folder on first use."""
    import_modules("posttrain.data.formats")
    return _FORMATS


def get(name: str) -> Format:
    """The format called `name`. Raises ConfigError with the nearest one."""
    known = formats()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known))}"
        raise ConfigError(Problem("data.format", f"there is no format {name!r}", hint))
    return known[name]


def detect(rows: Sequence[Row], where: str, *, kinds: Collection[str] = ()) -> Format:
    """The one format that the rows' non-null fields fit. Raises DataError where none or several fit, or rows differ.

    kinds: what can be made use of; formats of other kinds count only where none of these fits a row.
    """
    filled = [(row, {k: v for k, v in row.value.items() if v is not None}) for row in rows]
    found = [(row, candidates(fields, kinds) or candidates(fields)) for row, fields in filled]
    # rows that the method cannot read do not decide how the others are read: each of them is a bad row
    readable = [(row, names) for row, names in found if any(not kinds or formats()[name].kind in kinds for name in names)]
    known = readable or [(row, names) for row, names in found if names]
    if not known:
        raise DataError(Problem(where, _no_format(rows), "force one with data.format=NAME, or rename fields with data.columns"))
    common = set.intersection(*(set(names) for _, names in known))
    if len(common) == 1:
        return formats()[common.pop()]
    hint = f"choose one: {', '.join(f'data.format={name}' for name in sorted(common))}"
    if common:
        raise DataError(Problem(where, f"ambiguous: the rows fit the formats {', '.join(sorted(common))}", hint))
    first, names = known[0]
    other, others = next((row, found) for row, found in known if not set(found) & set(names))
    one, two = " or ".join(sorted(names)), " or ".join(sorted(others))
    message = f"the rows differ: row {first.line} is of format {one}, row {other.line} of {two}"
    raise DataError(Problem(where, message, f"split the file by format, or force one: data.format={sorted(names)[0]}"))


def candidates(row: Fields, kinds: Collection[str] = ()) -> list[str]:
    """Names of the formats that fit a row without null values, less those that need strictly fewer fields than another that fits.

    kinds: only formats of these; all for none.
    """
    asked = {name: form for name, form in formats().items() if not kinds or form.kind in kinds}
    matches = {name: matched for name, form in asked.items() if (matched := form.matched(row)) is not None}
    return [name for name, matched in matches.items() if not any(matched < other for other in matches.values())]


def _no_format(rows: Sequence[Row]) -> str:
    fields = list(dict.fromkeys(key for row in rows for key, value in row.value.items() if value is not None))
    shown = ", ".join(fields[:12]) + (", ..." if len(fields) > 12 else "")
    return f"no known format has the fields {shown or '(none)'}; known formats: {', '.join(sorted(formats()))}"


def options_of(form: Format, options: Mapping[str, Any]) -> dict[str, Any]:
    """Check `data.format_options` against the format's keyword-only parameters: names and types. Raises ConfigError."""
    known = {p.name: p for p in inspect.signature(form.convert, eval_str=True).parameters.values() if p.kind is p.KEYWORD_ONLY}
    problems = []
    checked: dict[str, Any] = {}
    for key, value in options.items():
        where = f"data.format_options.{key}"
        if key not in known:
            message = f"the format {form.name} has no such option"
            problems.append(Problem(where, message, f"it has: {', '.join(known)}" if known else "it has none"))
            continue
        try:
            checked[key] = TypeAdapter(known[key].annotation, config=ConfigDict(strict=False)).validate_python(value)
        except ValidationError as error:
            problems.append(Problem(where, f"{error.errors()[0]['msg']}, got {value!r}"))
    if problems:
        raise ConfigError(problems)
    return checked

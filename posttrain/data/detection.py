"""The format of a source: the one that is forced, or the one that its first rows have."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import chain, islice
from typing import Any

from posttrain.data.formats import Format, detect
from posttrain.data.formats import get as get_format
from posttrain.data.rows import BadRow, Row
from posttrain.data.settings import SourceSpec, read_settings
from posttrain.data.sources import check_sources, origin_of, read_rows
from posttrain.errors import DataError, Problem

LOOK = 64  # rows that decide a source's format
SHOWN = 20  # bad rows that an error names


def format_of(spec: SourceSpec, rows: Iterator[Row | BadRow], kinds: Collection[str]) -> tuple[Format, Iterator[Row | BadRow]]:
    """The forced or detected format, and the rows from the first on. kinds: what can be made use of, see `formats.detect`.

    Raises DataError where no row can be read, or none or several formats fit.
    """
    if spec.format != "auto":
        return get_format(spec.format), rows
    head = list(islice(rows, LOOK))
    good = [row for row in head if isinstance(row, Row)]
    if not good:
        bad = [Problem(row.where, row.reason) for row in head if isinstance(row, BadRow)]
        hint = "is it what its ending says, and in UTF-8? if so, mend the rows"
        raise DataError([*bad[: SHOWN - 1], Problem(origin_of(spec), f"none of the first {len(head)} rows can be read", hint)])
    return detect(good, origin_of(spec), kinds=kinds), chain(head, rows)


def format_kind(data: Mapping[str, Any], kinds: Collection[str]) -> str:
    """The kind of the format of a `data` node's first training source: conversation, text, preference ... Raises UserError."""
    settings = read_settings(data)
    if missing := check_sources(settings.train):
        raise DataError(missing)
    return format_of(settings.train[0], read_rows(settings.train[0]), kinds)[0].kind

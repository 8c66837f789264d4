"""The prompts of a data source as messages, without any tokenizer: for what generates data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain, islice
from typing import Any

from posttrain.data.encoders import check_format, readable
from posttrain.data.encoders.conversation import with_system
from posttrain.data.encoders.prompts import asked
from posttrain.data.formats import Filtered, Format, RowError, detect, options_of
from posttrain.data.formats import get as get_format
from posttrain.data.rows import BadRow, Row
from posttrain.data.settings import SourceSpec, read_settings
from posttrain.data.sources import check_sources, origin_of, read_rows
from posttrain.errors import DataError, Problem
from posttrain.types import Example

KIND = "prompt"
LOOK = 64  # rows that decide a source's format
Messages = tuple[Mapping[str, Any], ...]


def read_prompts(data: Mapping[str, Any], *, limit: int | None = None) -> Iterator[Messages | RowError]:
    """What the examples of a `data` node ask, in order: the messages before the last answer; RowError for a row that asks nothing.

    limit: most rows read of each source. Raises ConfigError or DataError for wrong settings and for missing or broken data.
    """
    settings = read_settings(data)
    if missing := check_sources(settings.train):
        raise DataError(missing)
    for spec in settings.train:
        for example in _examples(spec, limit):
            yield example if isinstance(example, RowError) else asked(with_system(example, settings.system))


def _examples(spec: SourceSpec, limit: int | None) -> Iterator[Example | RowError]:
    rows = read_rows(spec, limit)
    head = list(islice(rows, LOOK))
    form = _format(spec, head)
    options = options_of(form, spec.format_options)
    for row in chain(head, rows):
        try:
            found = RowError(row.reason) if isinstance(row, BadRow) else form.convert(row.value, **options)
        except RowError as error:
            found = error
        several = [found] if isinstance(found, Example | Filtered | RowError) else found
        yield from (one for one in several if not isinstance(one, Filtered))


def _format(spec: SourceSpec, head: list[Row | BadRow]) -> Format:
    good = [row for row in head if isinstance(row, Row)]
    if spec.format == "auto" and not good:
        raise DataError([Problem(row.where, row.reason) for row in head if isinstance(row, BadRow)])
    form = get_format(spec.format) if spec.format != "auto" else detect(good, origin_of(spec), kinds=readable(KIND))
    check_format(KIND, form, origin_of(spec))
    return form

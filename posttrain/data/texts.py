"""The texts within a value that was read from a file."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from typing import Any

from posttrain.data.formats import RowError
from posttrain.data.guard import GUARD
from posttrain.types import Example

MOST_DEPTH = 100  # of lists and objects in each other; templates, converters and json walk them by recursion


def texts_in(value: Any, *, keys: bool = True) -> Iterator[str]:
    """Every text. keys: those of objects, too. Raises RowError where lists and objects lie more than MOST_DEPTH deep in each other."""
    waiting = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        if isinstance(item, str):
            yield item
            continue
        inner = _inside(item, keys)
        if inner and depth == MOST_DEPTH:
            raise RowError(f"lists and objects lie more than {MOST_DEPTH} deep in each other")
        waiting.extend((part, depth + 1) for part in inner)


def _inside(item: Any, keys: bool) -> Collection[Any]:
    if isinstance(item, Mapping):
        return [*(item if keys else ()), *item.values()]
    return item if isinstance(item, (list, tuple)) else ()


def check_texts(value: Any) -> None:
    """Raises RowError for a text that is not made of characters, as JSON can escape them (`\\ud800`), and for what is nested too deep."""
    for text in texts_in(value):
        if not text.isascii() and (GUARD in text or not _encodes(text)):
            raise RowError("a text holds half a surrogate pair or U+FDD0, which are no characters")


def check_parsed(example: Example) -> None:
    """The same for what a format may have read from JSON that was itself a text of the row: tool calls and tools."""
    messages = chain(example.messages, *(answer.messages for answer in example.answers))
    check_texts([example.tools, [message["tool_calls"] for message in messages if "tool_calls" in message]])


def characters(value: Any) -> int:
    """Characters of all texts in a value but its keys. Raises RowError like `texts_in`."""
    return sum(map(len, texts_in(value, keys=False)))


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

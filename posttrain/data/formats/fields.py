"""Small readers of row fields, shared by the formats; each raises RowError that names the field."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from posttrain.data.formats.registry import RowError
from posttrain.types import Example

Message = dict[str, Any]
SHARED = ("system", "system_prompt", "tools", "data_source", "meta")  # fields that are no news to a reward, in any format


def text_of(row: Mapping[str, Any], key: str, default: str | None = None) -> str:
    """A string field; `default` where it is absent or null."""
    value = row.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise RowError(f"field {key!r} is missing" if value is None else f"field {key!r} must be a string, got {type(value).__name__}")
    return value


def filled(row: Mapping[str, Any], key: str) -> str:
    """A string field that holds more than white space."""
    value = text_of(row, key)
    if not value.strip():
        raise RowError(f"field {key!r} is empty")
    return value


def list_of(row: Mapping[str, Any], key: str) -> Sequence[Any]:
    """A list field; absent or null is empty."""
    value = row.get(key)
    if value is None:
        return []
    if not isinstance(value, (list, tuple)):
        raise RowError(f"field {key!r} must be a list, got {type(value).__name__}")
    return value


def meta_of(row: Mapping[str, Any], own: Collection[str]) -> dict[str, Any]:
    """What a row holds besides the fields that its format uses, and what its `meta` holds: rewards read it."""
    rest = {key: value for key, value in row.items() if key not in (*own, *SHARED) and value is not None}
    return {**rest, **row["meta"]} if isinstance(row.get("meta"), Mapping) else rest


def turn(prompt: str, answer: str) -> tuple[Message, ...]:
    """One question and its answer."""
    return {"role": "user", "content": prompt}, {"role": "assistant", "content": answer}


def conversation(messages: Sequence[Message], **rest: Any) -> Example:
    """An Example of messages, checked: there is an assistant turn, and none that is trained is empty."""
    assistants = [(place, m) for place, m in enumerate(messages, 1) if m["role"] == "assistant"]
    if not assistants:
        raise RowError("has no assistant turn")
    empty = [place for place, m in assistants if m.get("weight", 1) and not says_something(m)]
    if empty:
        raise RowError(f"message {empty[0]} is an assistant turn without content")
    return Example(messages=tuple(messages), **rest)


def says_something(message: Mapping[str, Any]) -> bool:
    """Whether a turn has a text, tool calls or reasoning."""
    content = message.get("content")
    text = content.strip() if isinstance(content, str) else content
    return bool(text or message.get("tool_calls") or message.get("reasoning_content"))

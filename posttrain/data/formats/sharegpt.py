"""ShareGPT and OpenHermes: turns with `from` and `value`; Capybara: turns with `input` and `output`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from posttrain.data.formats.fields import Message, conversation, list_of, text_of, turn
from posttrain.data.formats.glaive import read_call
from posttrain.data.formats.messages import below_system, message_of, tools_of
from posttrain.data.formats.registry import RowError, register
from posttrain.types import Example

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "system": "system",
    "developer": "developer",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "function-response": "tool",
    "function_call": "assistant",
    "function-call": "assistant",
}
_TAGS = re.compile(r"</?(?:functioncall|function_call|tool_call)>")
_BRACKET = re.compile(r"[\[{]")
CALLS = ("function_call", "function-call")  # turns whose value is what is called, as JSON


@register("sharegpt", needs=[["conversations"]], absent=["chosen", "rejected"])
def convert(row: Mapping[str, Any]) -> Example:
    """{"conversations": [{"from", "value", "weight"}], "system", "tools"}; weight null counts as 1, weight 0 is not trained.

    The value of a turn from function_call is a tool call as JSON, {"name", "arguments"}, or a list of them. Turns with `role` and
    `content` are read as messages are.
    """
    messages = [_message(entry, place) for place, entry in enumerate(list_of(row, "conversations"), 1)]
    return conversation(below_system(messages, row), tools=tuple(tools_of(row.get("tools"))))


def _message(entry: Any, place: int) -> Message:
    if not isinstance(entry, Mapping):
        raise RowError(f"turn {place} must be an object, got {type(entry).__name__}")
    name = entry.get("role") if entry.get("from") is None else entry["from"]
    if not isinstance(name, str) or name.lower() not in ROLES:
        raise RowError(f"turn {place} is from {name!r}, expected one of {', '.join(ROLES)}")
    role = ROLES[name.lower()]
    if entry.get("from") is None and entry.get("value") is None:
        return message_of({**entry, "role": role}, place)
    value = entry.get("content") if entry.get("value") is None else entry["value"]
    if not isinstance(value, str):
        raise RowError(f"turn {place}: value must be a string, got {type(value).__name__}")
    if name.lower() in CALLS:
        return message_of({**entry, **_called(value, place), "role": role, "name": None}, place)
    return message_of({**entry, "role": role, "content": value, "name": None}, place)


def _called(value: str, place: int) -> dict[str, Any]:
    """Content and tool calls of a turn that calls: JSON, perhaps in tags, perhaps behind a thought or a text."""
    behind = value.rfind("</think>") + 1  # a thought may hold brackets of its own
    start = _BRACKET.search(value, behind)
    if start is None:
        raise RowError(f"turn {place} is from function_call, and its value calls nothing")
    said, calls = value[: start.start()], list[Any]()
    for text in filter(str.strip, _TAGS.split(value[start.start() :])):
        found = read_call(text.strip())
        calls += found if isinstance(found, list) else [found]
    return {"content": _TAGS.sub("", said).strip(), "tool_calls": calls}


@register("capybara", needs=[["conversation"]])
def convert_capybara(row: Mapping[str, Any]) -> Example:
    """{"conversation": [{"input", "output"}], "source"}."""
    messages: list[Message] = []
    for place, entry in enumerate(list_of(row, "conversation"), 1):
        if not isinstance(entry, Mapping) or not {"input", "output"} <= entry.keys():
            raise RowError(f"turn {place} needs input and output")
        messages += turn(text_of(entry, "input"), text_of(entry, "output"))
    return conversation(messages)

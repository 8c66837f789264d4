"""ShareGPT and OpenHermes: turns with `from` and `value`; Capybara: turns with `input` and `output`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.data.formats.fields import Message, conversation, list_of, text_of, turn
from posttrain.data.formats.messages import tools_of, weight_of
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
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "function_call": "assistant",
    "function-call": "assistant",
}


@register("sharegpt", needs=[["conversations"]], absent=["chosen", "rejected"])
def convert(row: Mapping[str, Any]) -> Example:
    """{"conversations": [{"from", "value", "weight"}], "system", "tools"}; weight null counts as 1, weight 0 is not trained."""
    messages = [_message(entry, place) for place, entry in enumerate(list_of(row, "conversations"), 1)]
    system = text_of(row, "system", "") or text_of(row, "system_prompt", "")
    if system.strip() and (not messages or messages[0]["role"] != "system"):
        messages.insert(0, {"role": "system", "content": system})
    return conversation(messages, tools=tuple(tools_of(row.get("tools"))))


def _message(entry: Any, place: int) -> Message:
    if not isinstance(entry, Mapping):
        raise RowError(f"turn {place} must be an object, got {type(entry).__name__}")
    name = entry.get("from", entry.get("role"))
    if not isinstance(name, str) or name.lower() not in ROLES:
        raise RowError(f"turn {place} is from {name!r}, expected one of {', '.join(ROLES)}")
    value = entry.get("value", entry.get("content"))
    if not isinstance(value, str):
        raise RowError(f"turn {place}: value must be a string, got {type(value).__name__}")
    message: Message = {"role": ROLES[name.lower()], "content": value}
    if entry.get("weight") is not None:
        message["weight"] = weight_of(entry["weight"], place)
    return message


@register("capybara", needs=[["conversation"]])
def convert_capybara(row: Mapping[str, Any]) -> Example:
    """{"conversation": [{"input", "output"}], "source"}."""
    messages: list[Message] = []
    for place, entry in enumerate(list_of(row, "conversation"), 1):
        if not isinstance(entry, Mapping) or not {"input", "output"} <= entry.keys():
            raise RowError(f"turn {place} needs input and output")
        messages += turn(text_of(entry, "input"), text_of(entry, "output"))
    return conversation(messages)

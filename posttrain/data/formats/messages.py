"""OpenAI messages: Code-Feedback, UltraChat, and everything with a `messages` list; tools, tool calls and reasoning included."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.data.formats.fields import Message, conversation, list_of
from posttrain.data.formats.registry import RowError, register
from posttrain.types import Example

LARGEST = 3.4e38  # of a weight
SYSTEMS = ("system", "system_prompt")
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_REASONING = ("reasoning_content", "reasoning", "thinking")


def _is_thumb(label: Any) -> bool:
    """Whether a label says desirable or not."""
    if isinstance(label, str):
        return label.strip().lower() in ("true", "false")
    return isinstance(label, (int, float)) and label in (-1, 0, 1)


def _has_messages(row: Mapping[str, Any]) -> bool:
    messages = row["messages"]
    if _is_thumb(row.get("label")):  # training on all of them would be wrong, silently
        return False
    return isinstance(messages, (list, tuple)) and bool(messages) and isinstance(messages[0], Mapping) and "role" in messages[0]


@register("messages", needs=[["messages"]], absent=["chosen", "rejected"], accepts=_has_messages)
def convert(row: Mapping[str, Any]) -> Example:
    """{"messages": [{"role", "content", ...}], "system", "tools": [...]}; a message's `weight` 0 leaves it untrained."""
    messages = [message_of(message, place) for place, message in enumerate(list_of(row, "messages"), 1)]
    return conversation(below_system(messages, row), tools=tuple(tools_of(row.get("tools"))))


def below_system(messages: Sequence[Message], row: Mapping[str, Any]) -> list[Message]:
    """The messages, below the system message that the row has in a field of its own (`system`, `system_prompt`), if it has one.

    A conversation that begins with a system message keeps that one alone.
    """
    key = next((name for name in SYSTEMS if row.get(name)), None)
    stated = "" if key is None else content_of(row[key], f"field {key!r}")
    if not stated.strip() or (messages and messages[0]["role"] in ("system", "developer")):
        return list(messages)
    return [{"role": "system", "content": stated}, *messages]


def message_of(message: Any, place: int) -> Message:
    """A checked message; null fields dropped, text parts joined, tool-call arguments parsed, reasoning under `reasoning_content`."""
    if not isinstance(message, Mapping):
        raise RowError(f"message {place} must be an object, got {type(message).__name__}")
    role = message.get("role")
    if role not in ROLES:
        raise RowError(f"message {place} has the role {role!r}, expected one of {', '.join(ROLES)}")
    found = {key: value for key, value in message.items() if value is not None}
    content = content_of(found.get("content", ""), f"message {place}: content")
    kept: Message = {"role": "tool" if role == "function" else role, "content": content}
    kept |= {key: found[key] for key in ("name", "tool_call_id") if key in found}
    if reasoning := _reasoning(found, place):
        kept["reasoning_content"] = reasoning
    if "weight" in found:
        kept["weight"] = weight_of(found["weight"], place)
    calls = _calls(found, place)
    return kept | ({"tool_calls": calls} if calls else {})


def weight_of(value: Any, place: int) -> float:
    """A message's loss weight: a number from 0 that float32 can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= LARGEST:
        raise RowError(f"message {place}: weight must be a number from 0, got {value!r}")
    return float(value)


def content_of(value: Any, what: str) -> str:
    """A text, or a list of text parts as one text: most chat templates can write nothing else. Raises RowError, which names `what`."""
    if isinstance(value, str):
        return value
    if not isinstance(value, (list, tuple)) or not all(isinstance(part, Mapping) and part.get("type") == "text" for part in value):
        raise RowError(f"{what} must be a string or a list of text parts, got {type(value).__name__}")
    texts = [part.get("text") for part in value]
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise RowError(f"{what}: text part {number} has no text")
    return "".join(map(str, texts))


def _reasoning(found: Mapping[str, Any], place: int) -> str:
    """What a message thinks, under whichever name; empty for nothing. Raises RowError for what is no text."""
    thoughts = {key: found[key] for key in _REASONING if key in found}
    for key, thought in thoughts.items():
        if not isinstance(thought, str):
            raise RowError(f"message {place}: {key} must be a string, got {type(thought).__name__}")
    return next(filter(None, thoughts.values()), "")


def _calls(message: Mapping[str, Any], place: int) -> list[dict[str, Any]]:
    calls = list(list_of(message, "tool_calls"))
    if "function_call" in message:
        calls.append({"function": message["function_call"]})
    return [call_of(call, place) for call in calls]


def call_of(call: Any, place: int) -> dict[str, Any]:
    """A tool call with its arguments as an object: templates write them as JSON themselves."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RowError(f"message {place}: a tool call needs a function name")
    arguments = function.get("arguments", function.get("parameters"))
    if arguments is None and (others := sorted(set(function) - {"name", "arguments", "parameters", "id", "type", "index"})):
        raise RowError(f"message {place}: the call of {function['name']} has {', '.join(others)}, and no arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError) as error:  # a number may have too many digits, and lists may lie too deep
            raise RowError(f"message {place}: the arguments of {function['name']} are not JSON: {error}") from error
    kept = {key: call[key] for key in ("id",) if call.get(key)}
    return kept | {"type": "function", "function": {"name": function["name"], "arguments": {} if arguments is None else arguments}}


def tools_of(tools: Any) -> list[dict[str, Any]]:
    """Function schemas in the OpenAI form; a JSON string and bare function schemas are understood."""
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else []
        except (ValueError, RecursionError) as error:
            raise RowError(f"field 'tools' is not JSON: {error}") from error
    if tools is None:
        return []
    if not isinstance(tools, (list, tuple)):
        raise RowError(f"field 'tools' must be a list, got {type(tools).__name__}")
    return [tool_of(tool) for tool in tools]


def tool_of(tool: Any) -> dict[str, Any]:
    """One function schema, wrapped as {"type": "function", "function": ...}."""
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RowError("a tool needs a name")
    return {"type": "function", "function": dict(function)}

"""Glaive function calling v2: one `system` string with JSON schemas and one `chat` string with marked turns."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from posttrain.data.formats.fields import Message, conversation, text_of
from posttrain.data.formats.messages import call_of, tool_of
from posttrain.data.formats.registry import RowError, register
from posttrain.types import Example

_TURN = re.compile(r"(?:^|\n)\s*(USER|ASSISTANT|FUNCTION RESPONSE)\s*:", re.MULTILINE)
_CALL = re.compile(r"<functioncall>\s*")
_QUOTED = re.compile(r"""("arguments"\s*:\s*)'(.*)'\s*}\s*$""", re.DOTALL)
_ROLES = {"USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool"}


def _is_chat(row: Mapping[str, Any]) -> bool:
    return isinstance(row["chat"], str) and "USER:" in row["chat"]


@register("glaive", needs=[["chat", "system"]], accepts=_is_chat)
def convert(row: Mapping[str, Any]) -> Example:
    """{"system": "SYSTEM: ... {schema}", "chat": "USER: ... ASSISTANT: <functioncall> {...} <|endoftext|> FUNCTION RESPONSE: ..."}."""
    intro, tools = _system(text_of(row, "system"))
    messages: list[Message] = [{"role": "system", "content": intro}] if intro else []
    return conversation([*messages, *_turns(text_of(row, "chat"))], tools=tuple(tools))


def _system(text: str) -> tuple[str, list[dict[str, Any]]]:
    """The instruction before the schemas, and the schemas; where there are none, all of it is the instruction."""
    text = text.strip().removeprefix("SYSTEM:").strip()
    start = text.find("{")
    if start < 0:
        return text, []
    decoder, tools = json.JSONDecoder(), []
    intro, rest = text[:start].rstrip().rstrip("-").rstrip(), text[start:]
    while rest:
        try:
            schema, end = decoder.raw_decode(rest)
        except (ValueError, RecursionError) as error:
            raise RowError(f"field 'system': a function schema is not JSON: {error}") from error
        tools.append(tool_of(schema))
        rest = rest[end:].lstrip(" \t\r\n,")
    return intro, tools


def _turns(chat: str) -> list[Message]:
    marks = list(_TURN.finditer(chat))
    if not marks or chat[: marks[0].start()].strip():
        raise RowError("field 'chat' must start with USER: or ASSISTANT:")
    ends = [*(mark.start() for mark in marks[1:]), len(chat)]
    spans = enumerate(zip(marks, ends, strict=True), 1)
    return [_message(_ROLES[mark[1]], chat[mark.end() : end], place) for place, (mark, end) in spans]


def _message(role: str, text: str, place: int) -> Message:
    text = text.replace("<|endoftext|>", "").strip()
    if role != "assistant":
        return {"role": role, "content": text}
    said, *calls = _CALL.split(text)
    message: Message = {"role": role, "content": said.strip()}
    return message | ({"tool_calls": [_call(call.strip(), place) for call in calls]} if calls else {})


def read_call(text: str) -> Any:
    """A call, or a list of them, as JSON; {"name": "f", "arguments": '{"a": 1}'} too, where the arguments are JSON between single quotes,
    which JSON itself does not know. Raises RowError."""
    quoted = _QUOTED.search(text)
    try:
        if not quoted:
            return json.loads(text)
        call = json.loads(text[: quoted.start()] + quoted[1] + "null}")
        return {**call, "arguments": json.loads(quoted[2].replace("\\'", "'"))}
    except (ValueError, RecursionError) as error:
        raise RowError(f"a function call is not readable: {error} in {text[:80]!r}") from error


def _call(text: str, place: int) -> dict[str, Any]:
    call = read_call(text)
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise RowError(f"a function call without a name: {text[:80]!r}")
    return call_of(call, place)

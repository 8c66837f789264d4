"""Whether a rendered conversation shows what it is about: system messages, questions, tool results, and the tools themselves."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from posttrain.data.chat import Chat, Messages, Tools
from posttrain.data.formats import RowError

_NO_PARAMETERS = {"type": "object", "properties": {}, "required": []}
_OTHER = {"type": "function", "function": {"name": "_", "description": "_", "parameters": _NO_PARAMETERS}}


def check_context(chat: Chat, text: str, messages: Messages, tools: Tools, *, prompt: bool = False) -> None:
    """Raises RowError for what a template leaves out of `text`, where it would be lost without a word.

    text: what the template made of the messages and the tools, with a generation prompt if `prompt`.
    """
    left_out = [
        f"message {place} ({message['role']})"
        for place, message in enumerate(messages, 1)
        if message["role"] != "assistant" and not any(form in text for form in _forms(str(message.get("content", ""))))
    ]
    if tools:
        # The conversation may speak of a tool by itself: what the schema adds is seen beside the same conversation with another tool.
        other = chat.render(messages, (_OTHER,), prompt=prompt)
        left_out = [name for tool in tools for name in _lost(tool["function"], text, other)] + left_out
    if left_out:
        raise RowError(f"the chat template leaves out {', '.join(dict.fromkeys(left_out))}; set model.chat_template to one that writes it")


def _lost(function: Mapping[str, Any], text: str, other: str) -> list[str]:
    """What `text` does not show of a function's schema more often than `other` does; the tool alone, where not even its name shows."""
    lost = [name for name, piece in _pieces(function) if not any(_count(form, text) > _count(form, other) for form in _forms(piece))]
    return lost[:1] if lost and lost[0] == f"the tool {function['name']}" else lost


def _count(piece: str, text: str) -> int:
    """How often a text holds a piece, not as a part of longer words."""
    return len(re.findall(rf"(?<!\w){re.escape(piece)}(?!\w)", text))


def _forms(piece: str) -> tuple[str, ...]:
    """How a template may write a text: as it is, or within JSON."""
    return piece.strip(), json.dumps(piece.strip(), ensure_ascii=False)[1:-1]


def _pieces(function: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a function's schema says, and what to call it: its name, its description, the names of its parameters."""
    name, parameters = function["name"], function.get("parameters")
    yield f"the tool {name}", name
    if isinstance(about := function.get("description"), str) and about.strip():
        yield f"the description of the tool {name}", about
    known = parameters.get("properties") if isinstance(parameters, Mapping) else None
    yield from ((f"the parameter {key} of the tool {name}", key) for key in (known if isinstance(known, Mapping) else ()) if key)

"""Instruction data: Alpaca, prompt/completion, Magicoder Evol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from posttrain.data.formats.fields import Message, conversation, filled, list_of, text_of, turn
from posttrain.data.formats.messages import below_system, message_of, tools_of
from posttrain.data.formats.registry import RowError, register
from posttrain.types import Example


@register("alpaca", needs=[["instruction", "output"]])
def convert_alpaca(row: Mapping[str, Any]) -> Example:
    """{"instruction", "input", "output", "system", "history", "tools"}; a filled input follows the instruction after a blank line.

    history: earlier turns as [what the user says, what the assistant says] each; they are trained like all assistant turns.
    """
    extra = text_of(row, "input", "")
    prompt = filled(row, "instruction") + (f"\n\n{extra}" if extra.strip() else "")
    messages = [*_history(row), *turn(prompt, filled(row, "output"))]
    return conversation(below_system(messages, row), tools=tuple(tools_of(row.get("tools"))))


def _history(row: Mapping[str, Any]) -> Iterator[Message]:
    for place, pair in enumerate(list_of(row, "history") if row.get("history") else (), 1):  # a table may hold an empty text
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise RowError(f"history {place} must be two texts: what the user and what the assistant says")
        yield from turn(*pair)


@register("magicoder_evol", needs=[["instruction", "response"]], absent=["context"])
def convert_evol(row: Mapping[str, Any]) -> Example:
    """{"instruction", "response"}: Magicoder Evol-Instruct."""
    return conversation(below_system(turn(filled(row, "instruction"), filled(row, "response")), row))


@register("prompt_completion", needs=[["prompt", "completion"]], absent=["label", "chosen", "rejected"])
def convert_completion(row: Mapping[str, Any]) -> Example:
    """{"prompt", "completion", "system", "tools"}; prompt and completion are both strings or both lists of messages."""
    prompt, completion = row["prompt"], row["completion"]
    tools = tuple(tools_of(row.get("tools")))
    if isinstance(prompt, str) and isinstance(completion, str):
        return conversation(below_system(turn(filled(row, "prompt"), filled(row, "completion")), row), tools=tools)
    if not isinstance(prompt, (list, tuple)) or not isinstance(completion, (list, tuple)):
        raise RowError("prompt and completion must both be strings, or both lists of messages")
    messages = [message_of(message, place) for place, message in enumerate([*prompt, *completion], 1)]
    return conversation(below_system(_context(messages, len(prompt)), row), tools=tools)


def _context(messages: list[Message], count: int) -> list[Message]:
    """The first `count` messages are context: their assistant turns are not trained."""
    head = [message | {"weight": 0.0} if message["role"] == "assistant" else message for message in messages[:count]]
    return head + messages[count:]

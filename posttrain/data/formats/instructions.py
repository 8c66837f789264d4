"""Instruction data: Alpaca, prompt/completion, Magicoder Evol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.data.formats.fields import Message, conversation, filled, text_of, turn
from posttrain.data.formats.messages import message_of, tools_of
from posttrain.data.formats.registry import RowError, register
from posttrain.types import Example


@register("alpaca", needs=[["instruction", "output"]])
def convert_alpaca(row: Mapping[str, Any]) -> Example:
    """{"instruction", "input", "output", "system"}; a filled input follows the instruction after a blank line."""
    extra = text_of(row, "input", "")
    prompt = filled(row, "instruction") + (f"\n\n{extra}" if extra.strip() else "")
    return conversation(turn(prompt, filled(row, "output"), system=text_of(row, "system", "")))


@register("magicoder_evol", needs=[["instruction", "response"]], absent=["context"])
def convert_evol(row: Mapping[str, Any]) -> Example:
    """{"instruction", "response"}: Magicoder Evol-Instruct."""
    return conversation(turn(filled(row, "instruction"), filled(row, "response")))


@register("prompt_completion", needs=[["prompt", "completion"]], absent=["label", "chosen", "rejected"])
def convert_completion(row: Mapping[str, Any]) -> Example:
    """{"prompt", "completion"}, both strings or both lists of messages."""
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return conversation(turn(filled(row, "prompt"), filled(row, "completion")))
    if not isinstance(prompt, (list, tuple)) or not isinstance(completion, (list, tuple)):
        raise RowError("prompt and completion must both be strings, or both lists of messages")
    messages = [message_of(message, place) for place, message in enumerate([*prompt, *completion], 1)]
    return conversation(_context(messages, len(prompt)), tools=tuple(tools_of(row.get("tools"))))


def _context(messages: list[Message], count: int) -> list[Message]:
    """The first `count` messages are context: their assistant turns are not trained."""
    head = [message | {"weight": 0.0} if message["role"] == "assistant" else message for message in messages[:count]]
    return head + messages[count:]

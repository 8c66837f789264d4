"""Rows that only ask: what online learning answers itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.data.formats.fields import Message, meta_of
from posttrain.data.formats.messages import below_system, message_of, tools_of
from posttrain.data.formats.registry import RowError, register
from posttrain.types import Example

EXPECTED = ("answer", "final_answer", "ground_truth", "target", "solution")
ANSWERED = (
    "completion", "completions", "response", "chosen", "rejected", "label", "labels", "code", "canonical_solution", "score",
    "messages", "conversations",
)  # fmt: skip
OWN = ("prompt", *EXPECTED)


@register("prompt", needs=[["prompt"]], kind="prompt", absent=ANSWERED)
def convert(row: Mapping[str, Any]) -> Example:
    """{"prompt"}, a text or a list of messages.

    answer (also final_answer, ground_truth, target, solution): what a verifier expects. Further fields, or those in `meta`, reach rewards.
    """
    messages = _messages(row["prompt"])
    if messages[-1]["role"] == "assistant":
        raise RowError("the prompt ends with an assistant turn, so there is nothing to answer")
    expected = next((row[name] for name in EXPECTED if row.get(name) is not None), None)
    answer = None if expected is None else str(expected)
    asked, tools = tuple(below_system(messages, row)), tuple(tools_of(row.get("tools")))
    return Example(messages=asked, tools=tools, answer=answer, meta=meta_of(row, OWN))


def _messages(prompt: Any) -> list[Message]:
    if isinstance(prompt, str) and prompt.strip():
        return [{"role": "user", "content": prompt}]
    if isinstance(prompt, (list, tuple)) and prompt:
        return [message_of(message, place) for place, message in enumerate(prompt, 1)]
    raise RowError("field 'prompt' must be a text or a list of messages, and not empty")

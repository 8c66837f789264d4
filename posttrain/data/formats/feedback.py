"""Single answers with a thumb up or down: what KTO and BCO learn from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.data.formats.fields import says_something
from posttrain.data.formats.messages import below_system, tools_of
from posttrain.data.formats.preferences import PROMPTS, holds, messages_from
from posttrain.data.formats.registry import RowError, register
from posttrain.types import Answer, Example

ANSWERS = ("completion", "response", "answer")
WORDS = {"true": True, "false": False, "yes": True, "no": False}
NUMBERS = {"1": 1, "1.0": 1, "0": 0, "0.0": 0, "-1": -1, "-1.0": -1}  # as csv files have them


@register(
    "feedback",
    needs=[*([prompt, answer, "label"] for prompt in PROMPTS for answer in ANSWERS), ["messages", "label"], ["completion", "label"]],
    kind="feedback",
    absent=["chosen", "rejected", "labels"],
)
def convert(row: Mapping[str, Any]) -> Example:
    """{"prompt", "completion", "label"}: texts or lists of messages, and whether the answer is desirable; or {"messages", "label"}.

    A list that begins with the prompt needs no `prompt` field; its last assistant turns are the answer.
    label: true or false, 1 or 0 (or -1). system, tools: as for conversations.
    """
    key = next((name for name in PROMPTS if row.get(name) is not None), None)
    answered = next((name for name in (*ANSWERS, "messages") if row.get(name) is not None), None)
    if answered is None:
        raise RowError(f"has no answer: expected one of {', '.join(ANSWERS)}")
    asked = [] if key is None else messages_from(row[key], key, "user")
    answer = messages_from(row[answered], answered, "assistant")
    last = max((place for place, message in enumerate(answer) if message["role"] != "assistant"), default=-1)
    if key is None or (answer and answer[0]["role"] != "assistant") or holds(answer[: last + 1], asked):
        stated, asked, answer = asked, answer[: last + 1], answer[last + 1 :]
        known = [message.get("content") for message in asked]
        if any(message.get("content") not in known for message in stated):
            raise RowError(f"{key} is not what the conversation in {answered} begins with")
    if not asked:
        raise RowError("there is no prompt before the answer" if key is None else f"field {key!r} is empty")
    if asked[-1]["role"] == "assistant":
        raise RowError("the prompt must end in a turn that is not the assistant's")
    if not answer or answer[0]["role"] != "assistant" or answer[-1]["role"] != "assistant":
        raise RowError("the answer must begin and end with an assistant turn" if answer else "the answer is empty")
    if not any(says_something(message) for message in answer if message["role"] == "assistant"):
        raise RowError("the answer is empty")
    judged = Answer(tuple(answer), float(label_of(row.get("label"))))
    return Example(messages=tuple(below_system(asked, row)), answers=(judged,), tools=tuple(tools_of(row.get("tools"))))


def label_of(value: Any) -> bool:
    """Whether a label says desirable. Raises RowError for what is neither yes nor no."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        value = NUMBERS.get(value.strip(), value)
    if isinstance(value, (int, float)) and value in (-1, 0, 1):
        return value == 1
    if isinstance(value, str) and value.strip().lower() in WORDS:
        return WORDS[value.strip().lower()]
    raise RowError(f"field 'label' must be true or false, got {value!r}")

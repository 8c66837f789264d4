"""Data in the internal form: conversations, answers, worked steps, and how they are rendered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Answer:
    """One of the answers to an example's prompt.

    messages: as in `Example`; what follows the prompt, an assistant turn at the end. score: a rating, larger is better, None if unknown.
    attributes: ratings of single qualities by name (readability ...), in [0, 1], larger is better.
    """

    messages: tuple[Mapping[str, Any], ...]
    score: float | None = None
    attributes: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """A step of a worked answer. end: where it ends in the content of the answer's message, in characters.

    label: 1 right, 0 wrong, None unknown.
    """

    end: int
    label: float | None


@dataclass(frozen=True)
class Example:
    """One training example in the internal form every data format is converted to.

    messages: conversation as OpenAI message dicts (role, content, optional tool_calls, reasoning_content, weight); empty for plain text.
        With `answers` it is their prompt.
    answers: what is compared or judged; of a preference pair the chosen one first.
    steps: of the last message, a worked answer, for process rewards; in order.
    text: the document, for plain-text formats; None for conversations.
    tools: function schemas given to the chat template.
    answer: the checkable final answer, if the format has one.
    meta: what a verifier or a filter may need (tests, entry point, language, subject ...).
    """

    messages: tuple[Mapping[str, Any], ...] = ()
    answers: tuple[Answer, ...] = ()
    steps: tuple[Step, ...] = ()
    text: str | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    answer: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rendering:
    """What decides how a conversation becomes text, beside the tokenizer's chat template.

    system: message for conversations without one. template_kwargs: given to the template. separator: between the steps of a worked answer.
    """

    system: str | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    separator: str = "\n"

"""Texts of a row that look like control tokens stay text: what somebody says cannot end a turn or open another one.

Before the chat template writes a conversation, every special token within a text is broken by GUARD, which is no character and which no
row may hold. What was rendered is searched and measured with it in place, and `spans.encode_texts` leaves its tokens out. Tokens that are
added but not special (`<think>` in most families) are markers that texts may use. Where a family has made thoughts and tool calls
special, the assistant, whose they are, may still write them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

from posttrain.types import Example

GUARD = "\ufdd0"  # a noncharacter: Unicode keeps it for internal use
_OWN = re.compile(r"think|thought|reason|tool|call|function|python", re.IGNORECASE)  # in names of what an assistant writes besides text


@dataclass(frozen=True)
class Guard:
    """The special tokens that texts must not contain, those of the assistant and those of anybody else; None for none."""

    assistant: re.Pattern[str] | None
    others: re.Pattern[str] | None

    def example(self, example: Example) -> Example:
        """The example with every special token in its messages and tools broken; steps end where they did. Itself where there is none."""
        messages = tuple(self._message(message) for message in example.messages)
        tools = tuple(_broken(tool, self.others) for tool in example.tools)
        if messages == example.messages and tools == example.tools:
            return example
        return replace(example, messages=messages, tools=tools, steps=self._steps(example))

    def messages(self, messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The messages with every special token in their texts broken."""
        return [self._message(message) for message in messages]

    def finds_any(self, example: Example) -> bool:
        """Whether a message, an answer or a tool holds one."""
        answers = tuple(message for answer in example.answers for message in answer.messages)
        whole = replace(example, messages=example.messages + answers, steps=())
        return self.example(whole) is not whole

    def _message(self, message: Mapping[str, Any]) -> Any:
        pattern = self.assistant if message.get("role") == "assistant" else self.others
        return _broken(message, pattern)

    def _steps(self, example: Example) -> tuple[Any, ...]:
        places = _places(str(example.messages[-1]["content"]), self.assistant) if example.steps else []
        return tuple(replace(step, end=step.end + sum(place < step.end for place in places)) for step in example.steps)


@lru_cache(maxsize=8)
def guard(specials: tuple[str, ...]) -> Guard:
    """The guard against these special tokens."""
    longer = [special for special in specials if len(special) > 1]
    return Guard(_any_of([special for special in longer if not _OWN.search(special)]), _any_of(longer))


def _any_of(specials: Sequence[str]) -> re.Pattern[str] | None:
    """Matches, without its text, each place where one of the texts begins."""
    return re.compile(f"(?={'|'.join(map(re.escape, specials))})") if specials else None


def _places(text: str, pattern: re.Pattern[str] | None) -> list[int]:
    """Where the text has to be broken: behind the first character of each special token."""
    return [] if pattern is None else [match.start() + 1 for match in pattern.finditer(text)]


def _broken(value: Any, pattern: re.Pattern[str] | None) -> Any:
    if isinstance(value, str):
        places = _places(value, pattern)
        return GUARD.join(value[start:end] for start, end in pairwise([0, *places, len(value)])) if places else value
    if isinstance(value, Mapping):
        return {_broken(key, pattern): _broken(item, pattern) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_broken(item, pattern) for item in value)
    return value

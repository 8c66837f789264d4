"""Chat templates: a conversation as text with the spans that are trained, and as token ids with loss weights.

The assistant turns are found by rendering the conversation up to each of them: turn k is what the template adds between
`messages[:k]` with a generation prompt and `messages[:k + 1]`. If every such rendering is a prefix of the whole one, all turns are
trained in one sequence. If not, the template rewrites earlier turns (thinking models drop old reasoning): each turn then gets
the sequence that the model would see when it writes that turn. `{% generation %}` tags narrow what is trained within a turn.
What the generation prompt supplies is never trained; the token that ends a turn always is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from posttrain.data.formats import RowError
from posttrain.data.spans import Rendered, Span, tokenise
from posttrain.errors import ConfigError, Problem
from posttrain.types import Example

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_THINK, _END_THINK = "<think>", "</think>"
Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]]
Rendering = tuple[str, Sequence[tuple[int, int]]]  # a text, and its parts inside {% generation %} tags


@dataclass(frozen=True)
class Chat:
    """A tokenizer's chat template. Raises ConfigError on first use where the tokenizer has none."""

    tokenizer: Any
    kwargs: Mapping[str, Any]

    @cached_property
    def source(self) -> str:
        """The template's text."""
        if not self.tokenizer.chat_template:
            hint = "set model.chat_template to a jinja file or template"
            raise ConfigError(Problem("model.chat_template", "the tokenizer has no chat template", hint))
        return str(self.tokenizer.get_chat_template())

    @cached_property
    def tagged(self) -> bool:
        """Whether the template marks what the assistant writes with {% generation %}."""
        return _GENERATION.search(self.source) is not None

    @cached_property
    def specials(self) -> tuple[str, ...]:
        """Texts of the special tokens, longest first."""
        added = (token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special)
        return tuple(sorted({*added, *self.tokenizer.all_special_tokens} - {""}, key=len, reverse=True))

    def render(self, messages: Messages, tools: Tools, *, prompt: bool = False) -> str:
        """The conversation as text; `prompt` adds the generation prompt. Raises RowError where the template refuses it."""
        return self.render_tagged(messages, tools, prompt=prompt)[0]

    def render_tagged(self, messages: Messages, tools: Tools, *, prompt: bool = False) -> Rendering:
        """The conversation as text, and its parts inside {% generation %} tags (none with `prompt`)."""
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        chat = [{key: value for key, value in message.items() if key != "weight"} for message in messages]
        try:
            rendered: Any = render_jinja_template(
                [chat],
                tools=[dict(tool) for tool in tools] or None,
                chat_template=self.tokenizer.get_chat_template(None, list(tools)) if tools else self.source,
                return_assistant_tokens_mask=self.tagged and not prompt,
                add_generation_prompt=prompt,
                **{**self.tokenizer.special_tokens_map, **self.kwargs},
            )
        except (TemplateError, TypeError) as error:
            raise RowError(f"the chat template refuses the conversation: {error}") from error
        texts, tags = rendered
        return texts[0], tags[0] if tags else []


@dataclass(frozen=True)
class _Turn:
    """An assistant turn as rendered. text: the conversation up to its end. start: where in the text it starts. prompt: what
    generation would start from. tags: parts of the text inside generation tags; None where it is not what the template wrote.
    """

    text: str
    start: int
    prompt: str
    tags: Sequence[tuple[int, int]] | None
    weight: float

    @property
    def span(self) -> Span:
        """The turn without the white space after its last token: nobody has to write that."""
        return Span(self.start, len(self.text.rstrip()), self.weight)


def render_example(chat: Chat, example: Example, *, train_on: str = "assistant") -> list[Rendered]:
    """The sequences of a conversation: one, or one for each trained turn where the template rewrites earlier turns.

    train_on: assistant (every assistant turn), last (the last one alone), all (every token).
    Raises RowError for a conversation that the template refuses or changes beyond recognition.
    """
    messages = _for_template(chat, _until_last_assistant(example.messages))
    turns = [k for k, message in enumerate(messages) if message["role"] == "assistant" and message.get("weight", 1.0) > 0]
    if not turns:
        raise RowError("has no assistant turn" if not messages else "has no assistant turn with a weight above 0")
    whole, tags = chat.render_tagged(messages, example.tools)
    _check_tools(whole, messages, example)
    last = _turn(chat, messages, len(messages) - 1, example.tools, (whole, tags))
    if train_on == "all":
        return [_closed(chat, whole, (Span(0, len(whole), 1.0),), last.prompt)]
    kept = turns[-1:] if train_on == "last" else turns
    found = [last if k == len(messages) - 1 else _turn(chat, messages, k, example.tools, None) for k in kept]
    if all(whole.startswith(turn.text.rstrip()) for turn in found):
        spans = _narrowed(chat, whole, tags, [turn.span for turn in found])
        return [_closed(chat, whole[: found[-1].span.end], spans, last.prompt)]
    return [_closed(chat, turn.text[: turn.span.end], _narrowed(chat, turn.text, turn.tags, [turn.span]), turn.prompt) for turn in found]


def _until_last_assistant(messages: Messages) -> list[Mapping[str, Any]]:
    """Nothing after the last assistant turn is ever seen by a trained token."""
    last = max((k for k, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
    return list(messages[: last + 1])


def _for_template(chat: Chat, messages: Messages) -> list[Mapping[str, Any]]:
    """Reasoning goes where the template looks for it: its own field, or a <think> block in the content."""
    if "reasoning" in chat.source or "thinking" in chat.source:
        return list(messages)
    return [_inline(message) if message.get("reasoning_content") else message for message in messages]


def _inline(message: Mapping[str, Any]) -> dict[str, Any]:
    thought = f"{_THINK}\n{str(message['reasoning_content']).strip()}\n{_END_THINK}\n\n"
    rest = {key: value for key, value in message.items() if key != "reasoning_content"}
    return rest | {"content": thought + str(message.get("content", ""))}


def _turn(chat: Chat, messages: Messages, k: int, tools: Tools, known: Rendering | None) -> _Turn:
    """Turn k; `known`: the rendering of messages[:k + 1], where the caller has it."""
    text, tags = known or chat.render_tagged(messages[: k + 1], tools)
    weight = float(messages[k].get("weight", 1.0))
    if k == 0:
        start = _first_start(chat, text)
        return _Turn(text, start, text[:start], tags, weight)
    prompt = chat.render(messages[:k], tools, prompt=True)
    if text.startswith(prompt):
        return _Turn(text, len(prompt), prompt, tags, weight)
    if prompt.rstrip().endswith(_THINK):
        return _Turn(_with_thought(prompt, text, messages[k]), len(prompt), prompt, None, weight)
    # Some generation prompts hold more than a finished turn shows; what both share is the context.
    common = next((place for place, (a, b) in enumerate(zip(prompt, text, strict=False)) if a != b), min(len(prompt), len(text)))
    if common < len(chat.render(messages[:k], tools).rstrip()):
        raise RowError(f"the chat template hides where assistant turn {k + 1} starts")
    return _Turn(text, common, prompt, tags, weight)


def _first_start(chat: Chat, text: str) -> int:
    """Where the turn starts in a conversation that the assistant opens: after the header that the generation prompt shows elsewhere."""
    probe = [{"role": "user", "content": "x"}]
    header = chat.render(probe, (), prompt=True).removeprefix(chat.render(probe, ()))
    place = text.find(header.rstrip())
    if not header.strip() or place < 0:
        raise RowError("the chat template hides where the first assistant turn starts")
    return place + len(header if text.startswith(header, place) else header.rstrip())


def _with_thought(prompt: str, text: str, message: Mapping[str, Any]) -> str:
    """Templates whose generation prompt opens a thought, and whose finished turns drop it: the turn as the model has to write it."""
    content = str(message.get("content", ""))
    thought, mark, said = content.partition(_END_THINK)
    answer = (said if mark else content).strip()
    place = text.rfind(answer)
    if not answer or place < 0:
        raise RowError("the chat template drops the content of an assistant turn")
    reasoning = thought.replace(_THINK, "", 1).strip() if mark else str(message.get("reasoning_content", "")).strip()
    lead = "" if prompt.endswith("\n") else "\n"
    return f"{prompt}{lead}{reasoning}\n{_END_THINK}\n\n{answer}{text[place + len(answer) :]}"


def _narrowed(chat: Chat, text: str, tags: Sequence[tuple[int, int]] | None, turns: Sequence[Span]) -> tuple[Span, ...]:
    """The turns narrowed to what {% generation %} marks, each with the special token that ends it."""
    if not chat.tagged or tags is None:
        return tuple(turns)
    spans = [_within(chat, text, turn, tags) for turn in turns]
    if not all(spans):
        raise RowError("the chat template's {% generation %} tags leave out an assistant turn")
    return tuple(span for turn in spans for span in turn)


def _within(chat: Chat, text: str, turn: Span, tags: Sequence[tuple[int, int]]) -> list[Span]:
    parts = [(max(start, turn.start), min(end, turn.end)) for start, end in tags if start < turn.end and end > turn.start]
    if not parts:
        return []
    start, end = parts[-1]
    after = text[end : turn.end]
    gap = len(after) - len(after.lstrip())
    closing = next((special for special in chat.specials if after.startswith(special, gap)), "")
    parts[-1] = (start, end + gap + len(closing) if closing else end)
    return [Span(start, end, turn.weight) for start, end in parts]


def _closed(chat: Chat, text: str, spans: tuple[Span, ...], prompt: str) -> Rendered:
    return Rendered(text, spans, text.rstrip().endswith(chat.specials), prompt)


def _check_tools(text: str, messages: Messages, example: Example) -> None:
    """Tools or calls that a template leaves out would be lost without a word."""
    names = [str(tool["function"]["name"]) for tool in example.tools]
    names += [str(call["function"]["name"]) for message in messages for call in message.get("tool_calls", ())]
    lost = sorted({name for name in names if name not in text})
    if lost:
        raise RowError(f"the chat template leaves out the tools {', '.join(lost)}: set model.chat_template to one that writes tools")


def encode_example(
    tokenizer: Any, example: Example, *, train_on: str = "assistant", template_kwargs: Mapping[str, Any] | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """A conversation as (ids, weights) sequences: `render_example`, then `tokenise`."""
    return tokenise(tokenizer, render_example(Chat(tokenizer, template_kwargs or {}), example, train_on=train_on))

"""A tokenizer's chat template: rendering, and what it can write."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from posttrain.data.formats import RowError
from posttrain.data.guard import Guard, guard
from posttrain.errors import ConfigError, Problem

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
THINK, END_THINK = "<think>", "</think>"
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
        return special_texts(self.tokenizer)

    @cached_property
    def guard(self) -> Guard:
        """Against special tokens in texts."""
        return guard(self.specials)

    def render(self, messages: Messages, tools: Tools, *, prompt: bool = False) -> str:
        """The conversation as text; `prompt` adds the generation prompt. Raises RowError where the template refuses it."""
        return self.render_tagged(messages, tools, prompt=prompt)[0]

    def render_tagged(self, messages: Messages, tools: Tools, *, prompt: bool = False) -> Rendering:
        """The conversation as text, and its parts inside {% generation %} tags (none with `prompt`)."""
        from jinja2 import TemplateError, TemplateSyntaxError
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
        except TemplateSyntaxError as error:  # of the template, whatever the row
            hint = "mend the template, or choose another with model.chat_template=FILE"
            raise ConfigError(Problem("model.chat_template", f"line {error.lineno} is no Jinja: {error.message}", hint)) from error
        except (TemplateError, TypeError) as error:
            raise RowError(f"the chat template refuses the conversation: {error}") from error
        texts, tags = rendered
        return texts[0], tags[0] if tags else []

    @cached_property
    def arguments_as_text(self) -> bool:
        """Whether the template joins a tool call's arguments to text itself, and so needs them as JSON."""
        call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
        try:
            self.render([{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": [call]}], ())
        except RowError:
            return True
        return False

    @cached_property
    def writes_reasoning(self) -> bool:
        """Whether the template writes the `reasoning_content` of an answer."""
        answer = {"role": "assistant", "content": "x", "reasoning_content": "a thought"}
        try:
            return "a thought" in self.render([{"role": "user", "content": "x"}, answer], ())
        except RowError:
            return False

    def fitted(self, messages: Messages) -> list[Mapping[str, Any]]:
        """The messages as this template reads them: where reasoning stands, and what tool calls look like."""
        return [self._fitted(message) if message["role"] == "assistant" else message for message in messages]

    def _fitted(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        if message.get("reasoning_content"):
            message = message if self.writes_reasoning else _inline(message)
        elif THINK in str(message.get("content", "")) and self.writes_reasoning:
            message = _outline(message)
        if message.get("tool_calls") and self.arguments_as_text:
            message = {**message, "tool_calls": [_with_text(call) for call in message["tool_calls"]]}
        return message


def special_texts(tokenizer: Any) -> tuple[str, ...]:
    """Texts of a tokenizer's special tokens, longest first."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return tuple(sorted({*added, *tokenizer.all_special_tokens} - {""}, key=len, reverse=True))


def _inline(message: Mapping[str, Any]) -> dict[str, Any]:
    """Reasoning as a <think> block in front of the content."""
    thought = f"{THINK}\n{str(message['reasoning_content']).strip()}\n{END_THINK}\n\n"
    rest = {key: value for key, value in message.items() if key != "reasoning_content"}
    return rest | {"content": thought + str(message.get("content", ""))}


def _outline(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A <think> block in front of the content as reasoning."""
    content = message.get("content", "")
    if not isinstance(content, str) or not content.lstrip().startswith(THINK) or END_THINK not in content:
        return message
    thought, _, said = content.lstrip().removeprefix(THINK).partition(END_THINK)
    return {**message, "reasoning_content": thought.strip("\n"), "content": said.lstrip("\n")}


def _with_text(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}

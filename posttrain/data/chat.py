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
THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # names of a message's reasoning in templates; in examples it has the first
_ENDING_HEADERS = ("<|user|>", "<|observation|>")  # of GLM, whose turns end with the next one's header: it stops at these
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
        """Whether the template needs a tool call's arguments as JSON text: it joins them to text itself, or would print Python's dict."""
        as_object, as_text = (self._answered(_call(arguments)) for arguments in ({"a": "b"}, '{"a": "b"}'))
        return as_text is not None and (as_object is None or ("{'a'" in as_object and "{'a'" not in as_text))

    def ending_header(self, text: str) -> str:
        """The header that `text` begins with, if it is one at which the turn before it ends; else empty."""
        return next((header for header in _ENDING_HEADERS if header in self.specials and text.startswith(header)), "")

    def header_after(self, role: str) -> str:
        """The header that ends an assistant turn which a message of this role follows; empty where turns end otherwise."""
        return self._headers.get(role, "")

    @cached_property
    def _headers(self) -> Mapping[str, str]:
        """By role, see `header_after`."""
        if not any(header in self.specials for header in _ENDING_HEADERS):
            return {}
        return {role: self._header_after(role) for role in ("system", "user", "assistant", "tool")}

    def _header_after(self, role: str) -> str:
        messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "An answer."}, {"role": role, "content": "y"}]
        try:
            return self.ending_header(self.render(messages, ()).partition("An answer.")[2].lstrip())
        except RowError:
            return ""

    @cached_property
    def thought_key(self) -> str | None:
        """Under which name the template reads the reasoning of an answer; None where it writes none."""
        return next((key for key in THOUGHTS if "a thought" in (self._answered({"content": "x", key: "a thought"}) or "")), None)

    @cached_property
    def thought_key_of_calls(self) -> str | None:
        """Under which name the template reads the reasoning of a turn that calls tools; None where it writes none."""
        call = _call('{"a": "b"}' if self.arguments_as_text else {"a": "b"})
        return next((key for key in THOUGHTS if "a thought" in (self._answered(call | {key: "a thought"}) or "")), None)

    def _answered(self, answer: Mapping[str, Any]) -> str | None:
        """A conversation with this answer as the template writes it; None where it refuses."""
        try:
            return self.render([{"role": "user", "content": "x"}, {"role": "assistant", **answer}], ())
        except RowError:
            return None

    def fitted(self, messages: Messages) -> list[Mapping[str, Any]]:
        """The messages as this template reads them: where reasoning stands, and what tool calls look like."""
        return [self._fitted(message) if message["role"] == "assistant" else message for message in messages]

    def _fitted(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        calls = message.get("tool_calls")
        if thinks(message):
            key = self.thought_key_of_calls if calls else self.thought_key
            message = _inline(message) if key is None else _under(key, _outline(message))
        if calls and self.arguments_as_text:
            message = {**message, "tool_calls": [_with_text(call) for call in calls]}
        return message


def thinks(message: Mapping[str, Any]) -> bool:
    """Whether a message holds reasoning, in a field of its own or as a <think> block in its content."""
    return bool(message.get(THOUGHTS[0])) or THINK in str(message.get("content", ""))


def thought_of(message: Mapping[str, Any]) -> str:
    """The reasoning of a message, under whichever name, or as a <think> block in front of its content; empty where there is none."""
    outlined = _outline(message)
    return next((str(outlined[key]).strip() for key in THOUGHTS if outlined.get(key)), "")


def special_texts(tokenizer: Any) -> tuple[str, ...]:
    """Texts of a tokenizer's special tokens, longest first."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return tuple(sorted({*added, *tokenizer.all_special_tokens} - {""}, key=len, reverse=True))


def _call(arguments: Any) -> dict[str, Any]:
    """What a turn says that calls a tool; some templates want an id of nine characters."""
    call = {"id": "probe0001", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"content": "", "tool_calls": [call]}


def _inline(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Reasoning as a <think> block in front of the content."""
    if not message.get(THOUGHTS[0]):
        return message
    thought = f"{THINK}\n{str(message[THOUGHTS[0]]).strip()}\n{END_THINK}\n\n"
    rest = {key: value for key, value in message.items() if key != THOUGHTS[0]}
    return rest | {"content": thought + str(message.get("content", ""))}


def _outline(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A <think> block in front of the content as reasoning."""
    content = message.get("content", "")
    if message.get(THOUGHTS[0]) or not isinstance(content, str) or not content.lstrip().startswith(THINK) or END_THINK not in content:
        return message
    thought, _, said = content.lstrip().removeprefix(THINK).partition(END_THINK)
    return {**message, THOUGHTS[0]: thought.strip("\n"), "content": said.lstrip("\n")}


def _under(key: str, message: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message with its reasoning under another name."""
    return {key if name == THOUGHTS[0] else name: value for name, value in message.items()}


def _with_text(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}

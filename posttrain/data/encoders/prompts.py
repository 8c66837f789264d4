"""Prompts that the policy answers itself, with what a reward needs to judge the answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from posttrain.data.chat import Chat
from posttrain.data.context import check_context
from posttrain.data.encoders.conversation import with_system
from posttrain.data.encoders.registry import Drop, Encoded, EncodeSettings, Outcome, encoder
from posttrain.data.formats import RowError
from posttrain.data.spans import encode_ids
from posttrain.errors import ConfigError, Problem
from posttrain.types import Example, TokenizedExample

PROMPT = "the prompt"


@encoder("prompt", reads=("conversation", "preference", "prompt"))
def encode_prompts(examples: Sequence[Example], tokenizer: Any, settings: EncodeSettings) -> list[Outcome]:
    """Every example as the tokens before its last answer, no token of which is trained.

    max_length bounds the prompt: a longer one is dropped, or with truncation=left loses its beginning. Of a conversation the last
    assistant turn is left out; earlier ones belong to the prompt.
    """
    if settings.truncation in ("right", "split"):
        message = f"{settings.truncation} would cut the end of a prompt, which is what is answered"
        raise ConfigError(Problem("data.truncation", message, "use drop (auto does) or left"))
    chat = Chat(tokenizer, settings.template_kwargs)
    requests = [asked(with_system(example, settings.system)) for example in examples]
    texts = [_text(chat, messages, example) for messages, example in zip(requests, examples, strict=True)]
    tokens = iter(encode_ids(tokenizer, [text for text in texts if isinstance(text, str)]))
    return [
        text if isinstance(text, RowError) else _finish(next(tokens), text, messages, example, tokenizer, settings)  # type: ignore[arg-type]
        for text, messages, example in zip(texts, requests, examples, strict=True)
    ]


def asked(example: Example) -> tuple[Mapping[str, Any], ...] | RowError:
    """The messages before the last answer."""
    if example.text is not None:
        return RowError("plain text asks nothing")
    messages = example.messages
    if not example.answers and messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not messages or messages[-1]["role"] in ("assistant", "system", "developer"):
        return RowError("has no question to answer")
    return messages


def _text(chat: Chat, messages: tuple[Mapping[str, Any], ...] | RowError, example: Example) -> str | RowError:
    if isinstance(messages, RowError):
        return messages
    safe = chat.guard.example(Example(messages=messages, tools=example.tools))
    try:
        fitted = chat.fitted(safe.messages)
        text = chat.render(fitted, safe.tools, prompt=True)
        check_context(chat, text, fitted, safe.tools, prompt=True)
    except RowError as error:
        return error
    return text


def _finish(
    ids: np.ndarray, text: str, messages: tuple[Mapping[str, Any], ...], example: Example, tokenizer: Any, settings: EncodeSettings
) -> Outcome:
    if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
        ids = ids[1:]
    if not len(ids):
        return RowError("the chat template makes no token of the prompt")
    truncated = len(ids) > settings.max_length
    if truncated and settings.truncation != "left":
        return Drop(f"{PROMPT} is longer than max_length={settings.max_length}")
    facts = json.dumps({"prompt": messages, "meta": example.meta}, ensure_ascii=False, default=str)
    return [Encoded(_prompt(ids[-settings.max_length :]), truncated, example.answer, text, facts)]


def _prompt(ids: np.ndarray) -> TokenizedExample:
    """One segment without a target; its mark is its last token."""
    whole = np.array([len(ids)], np.int32)
    return TokenizedExample(
        ids.astype(np.int32), np.zeros(len(ids), np.float32), whole, np.array([-1], np.int32), whole - 1, np.array([np.nan], np.float32)
    )

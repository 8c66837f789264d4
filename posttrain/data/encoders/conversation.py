"""Conversations: loss on what the assistant writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from posttrain.data.chat import Chat
from posttrain.data.encoders.registry import Drop, Encoded, EncodeSettings, Outcome, encoder, example_of
from posttrain.data.formats import RowError
from posttrain.data.spans import Rendered, tokenise
from posttrain.data.templates import render_example
from posttrain.errors import ConfigError, Problem
from posttrain.types import Example

Sequences = list[tuple[np.ndarray, np.ndarray]]


@encoder("conversation")
def encode_conversations(examples: Sequence[Example], tokenizer: Any, settings: EncodeSettings) -> list[Outcome]:
    """Every example as a tree of one sequence, or of one a turn where the template rewrites earlier turns."""
    if settings.truncation == "split":
        raise ConfigError(Problem("data.truncation", "split is for plain text; a conversation can be cut right, left, or dropped"))
    chat = Chat(tokenizer, settings.template_kwargs)
    rendered = [_render(chat, example, settings) for example in examples]
    flat = [sequence for sequences in rendered if not isinstance(sequences, RowError) for sequence in sequences]
    tokens = iter(tokenise(tokenizer, flat))
    outcomes: list[Outcome] = []
    for example, sequences in zip(examples, rendered, strict=True):
        if isinstance(sequences, RowError):
            outcomes.append(sequences)
        else:
            outcomes.append(_finish(example, sequences[-1].prompt, [next(tokens) for _ in sequences], settings))
    return outcomes


def _render(chat: Chat, example: Example, settings: EncodeSettings) -> list[Rendered] | RowError:
    if example.text is not None:
        return RowError("plain text has no assistant turn: train it with method=pretrain")
    try:
        return render_example(chat, with_system(example, settings.system), train_on=settings.train_on)
    except RowError as error:
        return error


def with_system(example: Example, system: str | None) -> Example:
    """The example with a system message in front, unless it has its own."""
    if not system or (example.messages and example.messages[0]["role"] in ("system", "developer")):
        return example
    return replace(example, messages=({"role": "system", "content": system}, *example.messages))


def _finish(example: Example, prompt: str, sequences: Sequences, settings: EncodeSettings) -> Outcome:
    longest = max(len(ids) for ids, _ in sequences)
    if longest > settings.max_length and settings.truncation == "drop":
        return Drop(f"longer than max_length={settings.max_length}")
    kept = [cut for ids, weights in sequences if (cut := truncate(ids, weights, settings))[1][1:].any()]
    if not kept:
        cause = "after truncation" if longest > settings.max_length else "at all"
        return Drop(f"keeps no trained token {cause}")
    return [Encoded(example_of(kept), longest > settings.max_length, example.answer, None if example.answer is None else prompt)]


def truncate(ids: np.ndarray, weights: np.ndarray, settings: EncodeSettings) -> tuple[np.ndarray, np.ndarray]:
    """At most max_length tokens: the first ones, or with truncation=left the last ones."""
    keep = slice(-settings.max_length, None) if settings.truncation == "left" else slice(0, settings.max_length)
    return ids[keep], weights[keep]

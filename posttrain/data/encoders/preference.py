"""Answers that are compared: a tree with the prompt once and a branch for each answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from posttrain.data.chat import Chat
from posttrain.data.encoders.conversation import with_system
from posttrain.data.encoders.registry import Drop, Encoded, EncodeSettings, Outcome, encoder
from posttrain.data.formats import RowError
from posttrain.data.spans import Rendered, tokenise
from posttrain.data.templates import render_example
from posttrain.data.tree import tree_of
from posttrain.errors import ConfigError, Problem
from posttrain.types import Answer, Example

Sequences = list[tuple[np.ndarray, np.ndarray]]


@encoder("preference", reads=("preference",))
def encode_pairs(examples: Sequence[Example], tokenizer: Any, settings: EncodeSettings) -> list[Outcome]:
    """Every pair as a tree whose marks are the last tokens of the chosen and the rejected answer, and whose values are their ratings."""
    check_settings(settings)
    chat = Chat(tokenizer, settings.template_kwargs)
    rendered = [_render(chat, example, settings) for example in examples]
    flat = [sequence for sequences in rendered if not isinstance(sequences, RowError) for sequence in sequences]
    tokens = iter(tokenise(tokenizer, flat))
    return [
        sequences if isinstance(sequences, RowError) else _finish(example, [next(tokens) for _ in sequences], settings)
        for example, sequences in zip(examples, rendered, strict=True)
    ]


def check_settings(settings: EncodeSettings) -> None:
    """Raises ConfigError for what makes no sense where answers are compared or judged."""
    if settings.truncation == "split":
        raise ConfigError(Problem("data.truncation", "split is for plain text; an answer to a prompt can be cut right, left, or dropped"))
    if settings.train_on == "all":
        raise ConfigError(Problem("data.train_on", "what is judged is the answer, not its prompt", "use assistant or last"))


def _render(chat: Chat, example: Example, settings: EncodeSettings) -> list[Rendered] | RowError:
    if len(example.answers) != 2:
        return RowError("has no pair of answers: preference methods need rows with a chosen and a rejected answer")
    try:
        return [answer_sequence(chat, with_system(example, settings.system), answer, settings) for answer in example.answers]
    except RowError as error:
        return error


def answer_sequence(chat: Chat, example: Example, answer: Answer, settings: EncodeSettings) -> Rendered:
    """The prompt with one answer, of which the answer alone is trained. Raises RowError."""
    if answer.messages[-1].get("weight", 1.0) == 0:
        raise RowError("the last turn of an answer has a weight of 0: what is judged is the whole answer")
    prompt = tuple({**message, "weight": 0.0} if message["role"] == "assistant" else message for message in example.messages)
    whole = replace(example, messages=prompt + answer.messages, answers=())
    found = render_example(chat, whole, train_on=settings.train_on, open_ends=True)  # an answer is one sequence, whatever it holds
    if len(found) > 1:
        raise RowError("the chat template rewrites earlier turns: an answer of several turns is not one sequence; set data.train_on=last")
    return found[0]


def _finish(example: Example, sequences: Sequences, settings: EncodeSettings) -> Outcome:
    if sequences[0][0].tolist() == sequences[1][0].tolist():
        return RowError("chosen and rejected are the same tokens")
    truncated = max(len(ids) for ids, _ in sequences) > settings.max_length
    if truncated:
        if settings.truncation == "drop":
            return Drop(f"longer than max_length={settings.max_length}")
        sequences = fit(sequences, settings.max_length, keep_prompt=settings.truncation == "right")
    if not all(weights[1:].any() for _, weights in sequences):
        return Drop("an answer keeps no token after truncation")
    if truncated and sequences[0][0].tolist() == sequences[1][0].tolist():
        return Drop("the answers are the same after truncation")
    scores = [np.nan if answer.score is None else answer.score for answer in example.answers]
    return [Encoded(tree_of(sequences, scores), truncated)]


def fit(sequences: Sequences, max_length: int, *, keep_prompt: bool) -> Sequences:
    """Sequences of one prompt cut to max_length tokens each.

    The prompt gives way first, from its beginning and by as much for each, so that it stays shared and the answers whole; an answer
    that is too long by itself then loses its end. keep_prompt: only the ends are cut.
    """
    if not keep_prompt:
        over = max(len(ids) for ids, _ in sequences) - max_length
        prompt = min(int(np.flatnonzero(weights)[0]) for _, weights in sequences)
        cut = max(0, min(over, prompt - 1))
        sequences = [(ids[cut:], weights[cut:]) for ids, weights in sequences]
    return [(ids[:max_length], weights[:max_length]) for ids, weights in sequences]


def fit_closed(sequences: Sequences, max_length: int, *, keep_prompt: bool) -> Sequences:
    """`fit`, but every answer keeps the token that ends it: who judges by the last token must not learn which answers were cut."""
    short = fit([(ids[:-1], weights[:-1]) for ids, weights in sequences], max_length - 1, keep_prompt=keep_prompt)
    ends = [(ids[-1:], weights[-1:]) for ids, weights in sequences]
    return [(np.append(a, c), np.append(b, d)) for (a, b), (c, d) in zip(short, ends, strict=True)]

"""Worked answers whose steps are labelled: one sequence, marked at the last token of each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from posttrain.data.chat import Chat
from posttrain.data.encoders.conversation import with_system
from posttrain.data.encoders.preference import check_settings
from posttrain.data.encoders.registry import Drop, Encoded, EncodeSettings, Outcome, encoder
from posttrain.data.formats import RowError
from posttrain.data.spans import encode_texts
from posttrain.data.templates import render_example
from posttrain.types import Example, Step, TokenizedExample


@dataclass(frozen=True)
class Trace:
    """A rendered worked answer. start: where the answer's content begins in the text."""

    text: str
    start: int
    steps: tuple[Step, ...]


@encoder("steps", reads=("steps",))
def encode_steps(examples: Sequence[Example], tokenizer: Any, settings: EncodeSettings) -> list[Outcome]:
    """Every example as one sequence; its marks are the last tokens of the steps with a label, its values the labels."""
    check_settings(settings)
    chat = Chat(tokenizer, settings.template_kwargs)
    traces = [_render(chat, example, settings) for example in examples]
    tokens = iter(encode_texts(tokenizer, [trace.text for trace in traces if isinstance(trace, Trace)]))
    return [
        trace if isinstance(trace, RowError) else _finish(trace, *_without_second_bos(tokenizer, *next(tokens)), settings)
        for trace in traces
    ]


def _render(chat: Chat, example: Example, settings: EncodeSettings) -> Trace | RowError:
    if not example.steps:
        return RowError("has no steps: a process reward model needs answers in steps with a label each")
    example = chat.guard.example(with_system(example, settings.system))
    content = str(example.messages[-1]["content"])
    try:
        rendered = render_example(chat, example, train_on="last")[0]
    except RowError as error:
        return error
    said = content.strip()
    start = rendered.text.find(said, rendered.spans[0].start)
    if start < 0:
        return RowError("the chat template changes the answer: its steps cannot be found again")
    return Trace(rendered.text, start - (len(content) - len(content.lstrip())), example.steps)


def _without_second_bos(tokenizer: Any, ids: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    doubled = len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id
    return (ids[1:], offsets[1:]) if doubled else (ids, offsets)


def _finish(trace: Trace, ids: np.ndarray, offsets: np.ndarray, settings: EncodeSettings) -> Outcome:
    labelled = [step for step in trace.steps if step.label is not None]
    marks = last_tokens(offsets, [trace.start + step.end for step in labelled])
    if len(set(marks.tolist())) < len(marks):
        return RowError("two steps end in the same token: set data.format_options.separator to a text that parts them")
    labels = np.array([step.label for step in labelled], np.float32)
    truncated = len(ids) > settings.max_length
    if truncated and settings.truncation == "drop":
        return Drop(f"longer than max_length={settings.max_length}")
    first = max(0, len(ids) - settings.max_length) if settings.truncation == "left" else 0
    marks = marks - first
    kept = (marks >= 1) & (marks < settings.max_length)
    if not kept.any():
        return Drop("keeps no labelled step after truncation")
    return [Encoded(_tokens(ids[first : first + settings.max_length], marks[kept], labels[kept]), truncated)]


def last_tokens(offsets: np.ndarray, ends: Sequence[int]) -> np.ndarray:
    """Places [M] of the last tokens that hold the last character before each of `ends`: a character may take several.

    offsets: characters start..end of each token, [T, 2].
    """
    until = np.maximum.accumulate(offsets[:, 1])
    first, behind = (np.searchsorted(until, np.asarray(ends), side=side) for side in ("left", "right"))
    several = [np.flatnonzero(offsets[start:stop, 0] < end) for start, stop, end in zip(first, behind, ends, strict=True)]
    return first + np.array([found[-1] if len(found) else 0 for found in several], np.int64)


def _tokens(ids: np.ndarray, marks: np.ndarray, labels: np.ndarray) -> TokenizedExample:
    """A sequence whose marked tokens have a weight of 1, so that a step's weight is the number of its labels."""
    weights = np.zeros(len(ids), np.float32)
    weights[marks] = 1.0
    whole, root = np.array([len(ids)], np.int32), np.array([-1], np.int32)
    return TokenizedExample(ids.astype(np.int32), weights, whole, root, marks.astype(np.int32), labels)

"""Answers that were judged one by one: a sequence each, with what was said of it at its last token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from posttrain.data.chat import Chat
from posttrain.data.encoders.conversation import with_system
from posttrain.data.encoders.preference import answer_sequence, check_settings, fit
from posttrain.data.encoders.registry import Drop, Encoded, EncodeSettings, Outcome, encoder
from posttrain.data.formats import RowError
from posttrain.data.spans import Rendered, tokenise
from posttrain.data.tree import tree_of
from posttrain.types import Example

Tokens = tuple[np.ndarray, np.ndarray]


@encoder("feedback", reads=("feedback", "preference"))
def encode_feedback(examples: Sequence[Example], tokenizer: Any, settings: EncodeSettings) -> list[Outcome]:
    """Every judged answer as a tree of one sequence, its value 1 for desirable and 0 for undesirable.

    Of a preference pair the chosen answer is desirable and the rejected one undesirable: two trees.
    """
    check_settings(settings)
    chat = Chat(tokenizer, settings.template_kwargs)
    rendered = [_render(chat, example, settings) for example in examples]
    flat = [sequence for sequences in rendered if not isinstance(sequences, RowError) for sequence in sequences]
    tokens = iter(tokenise(tokenizer, flat))
    return [
        sequences if isinstance(sequences, RowError) else _finish(_labels(example), [next(tokens) for _ in sequences], settings)
        for example, sequences in zip(examples, rendered, strict=True)
    ]


def _render(chat: Chat, example: Example, settings: EncodeSettings) -> list[Rendered] | RowError:
    if not example.answers:
        return RowError("has no judged answer: expected rows with a label, or pairs with a chosen and a rejected answer")
    try:
        return [answer_sequence(chat, with_system(example, settings.system), answer, settings) for answer in example.answers]
    except RowError as error:
        return error


def _labels(example: Example) -> list[float]:
    """What was said of each answer."""
    if len(example.answers) == 2:
        return [1.0, 0.0]
    return [np.nan if answer.score is None else answer.score for answer in example.answers]


def _finish(labels: list[float], sequences: list[Tokens], settings: EncodeSettings) -> Outcome:
    if len({sequence[0].tobytes() for sequence in sequences}) < len(sequences):
        return RowError("chosen and rejected are the same tokens")
    longest = max(len(ids) for ids, _ in sequences)
    if longest > settings.max_length and settings.truncation == "drop":
        return Drop(f"longer than max_length={settings.max_length}")
    cut = [fit([sequence], settings.max_length, keep_prompt=settings.truncation == "right")[0] for sequence in sequences]
    kept = [
        Encoded(tree_of([(ids, weights)], [label]), len(whole) > settings.max_length)
        for label, (ids, weights), (whole, _) in zip(labels, cut, sequences, strict=True)
        if weights[1:].any()
    ]
    if len({found.tokens.ids.tobytes() for found in kept}) < len(kept):
        return Drop("the answers are the same after truncation")
    return kept or Drop("the answer keeps no token after truncation")

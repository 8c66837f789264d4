"""Answers that a reward model judges: a tree with the prompt once, a branch for each answer, and all that is known of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from posttrain.data.chat import Chat
from posttrain.data.encoders.conversation import with_system
from posttrain.data.encoders.preference import Sequences, answer_sequence, check_settings, fit_closed
from posttrain.data.encoders.registry import Drop, Encoded, EncodeSettings, Outcome, encoder
from posttrain.data.formats import RowError
from posttrain.data.spans import Rendered, tokenise
from posttrain.data.tree import tree_of
from posttrain.types import Answer, Example, TokenizedExample

Select = Callable[[Example, EncodeSettings], Sequence[Answer]]


@encoder("rated_pairs", reads=("preference",))
def encode_pairs(examples: Sequence[Example], tokenizer: Any, settings: EncodeSettings) -> list[Outcome]:
    """Every pair as a tree of its chosen and its rejected answer."""
    return [_untied(outcome) for outcome in _encode(examples, tokenizer, settings, _pair)]


def _untied(outcome: Outcome) -> Outcome:
    """The outcome, unless its two branches hold the same tokens: what a template or a cut made equal, no model can tell apart."""
    if not isinstance(outcome, list):
        return outcome
    tree = outcome[0].tokens
    branches = [part.tolist() for part in np.split(tree.ids, np.cumsum(tree.segment_lengths)[:-1])[1:]]
    if len(branches) != 2 or branches[0] != branches[1]:
        return outcome
    return (
        Drop("the answers are the same after truncation") if outcome[0].truncated else RowError("chosen and rejected are the same tokens")
    )


@encoder("rated", reads=("preference", "rated"))
def encode_rated(examples: Sequence[Example], tokenizer: Any, settings: EncodeSettings) -> list[Outcome]:
    """Every example as a tree of its answers that are rated, one or more."""
    return _encode(examples, tokenizer, settings, _with_rating)


def _pair(example: Example, settings: EncodeSettings) -> Sequence[Answer]:
    if len(example.answers) != 2:
        raise RowError("has no pair of answers: a reward model learns from rows with a chosen and a rejected answer, or from ratings")
    return example.answers


def _with_rating(example: Example, settings: EncodeSettings) -> Sequence[Answer]:
    if example.meta.get("scores") == "margin":
        raise RowError("has a margin, which is a difference, and no score of each answer")
    found = [answer for answer in example.answers if not np.isnan(_ratings(answer, settings)).all()]
    if not found:
        raise RowError("has no answer with a rating: learning from ratings needs a score or one of data.attributes")
    return found


def _encode(examples: Sequence[Example], tokenizer: Any, settings: EncodeSettings, select: Select) -> list[Outcome]:
    check_settings(settings)
    chat = Chat(tokenizer, settings.template_kwargs)
    rendered = [_render(chat, example, settings, select) for example in examples]
    flat = [sequence for found in rendered if not isinstance(found, RowError) for sequence in found[1]]
    tokens = iter(tokenise(tokenizer, flat))
    return [
        found if isinstance(found, RowError) else _finish(found[0], [next(tokens) for _ in found[1]], tokenizer, settings)
        for found in rendered
    ]


def _render(chat: Chat, example: Example, settings: EncodeSettings, select: Select) -> tuple[Sequence[Answer], list[Rendered]] | RowError:
    try:
        answers = select(example, settings)
        return answers, [answer_sequence(chat, with_system(example, settings.system), answer, settings) for answer in answers]
    except RowError as error:
        return error


def _finish(answers: Sequence[Answer], sequences: Sequences, tokenizer: Any, settings: EncodeSettings) -> Outcome:
    truncated = max(len(ids) for ids, _ in sequences) > settings.max_length
    if truncated and settings.truncation == "drop":
        return Drop(f"longer than max_length={settings.max_length}")
    if truncated:
        sequences = fit_closed(sequences, settings.max_length, keep_prompt=settings.truncation == "right")
    if not all(weights[1:-1].any() if truncated else weights[1:].any() for _, weights in sequences):
        return Drop("an answer keeps no token after truncation")
    if any(ids[-1] == tokenizer.pad_token_id for ids, _ in sequences):
        return RowError("ends with the padding token, behind which a sequence classifier does not look")
    return [Encoded(judged_tree(sequences, [_ratings(answer, settings) for answer in answers]), truncated)]


def judged_tree(sequences: Sequences, ratings: Sequence[np.ndarray]) -> TokenizedExample:
    """A tree of answers whose last tokens alone have a weight (1), and are marked for the answer's length and each of its ratings.

    sequences: with the weights of their answers' tokens. ratings: float [R] of each answer; marks and values are [A * (1 + R)].
    """
    last = [(ids, np.append(np.zeros(len(ids) - 1), 1.0)) for ids, _ in sequences]
    tree = tree_of(last)
    lengths = [float(np.count_nonzero(weights)) for _, weights in sequences]
    values = np.stack([np.append(length, known) for length, known in zip(lengths, ratings, strict=True)])
    marks = np.repeat(tree.marks, values.shape[1])
    parts = tree.ids, tree.weights, tree.segment_lengths, tree.segment_parents
    return TokenizedExample(*parts, marks.astype(np.int32), values.ravel().astype(np.float32))


def _ratings(answer: Answer, settings: EncodeSettings) -> np.ndarray:
    """The score, and the attributes of the settings in their order; NaN where unknown. float64 [1 + K]."""
    known = [answer.score, *(answer.attributes.get(name) for name in settings.attributes)]
    return np.array([np.nan if value is None else value for value in known])

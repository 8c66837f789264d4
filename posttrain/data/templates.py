"""Chat templates: a conversation as text with the spans that are trained, and as token ids with loss weights.

The assistant turns are found by rendering the conversation up to each of them: turn k is what the template adds between
`messages[:k]` with a generation prompt and `messages[:k + 1]`. If every such rendering is a prefix of the whole one, and a token there
ends each turn, all turns are trained in one sequence. If not, the template rewrites earlier turns (thinking models drop old reasoning) or
leaves the end of a turn open, where EOS has to stand: each turn then gets the sequence that the model would see when it writes that
turn. `{% generation %}` tags narrow what is trained within a turn.
What the generation prompt supplies is never trained; the token that ends a turn always is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from posttrain.data.chat import Chat
from posttrain.data.context import check_context
from posttrain.data.formats import RowError
from posttrain.data.spans import Rendered, Span, tokenise
from posttrain.data.turns import find_turn, narrowed
from posttrain.types import Example


def render_example(chat: Chat, example: Example, *, train_on: str = "assistant", open_ends: bool = False) -> list[Rendered]:
    """The sequences of a conversation: one, or one for each trained turn where the template rewrites earlier turns.

    train_on: assistant (every assistant turn), last (the last one alone), all (every token). open_ends: a turn that no token ends is no
    reason for several sequences.
    Special tokens within its texts stay text, see `guard`. Raises RowError for a conversation that the template refuses, or of which it
    leaves something out.
    """
    example = chat.guard.example(example)
    trained = [k for k, message in enumerate(example.messages) if message["role"] == "assistant" and message.get("weight", 1.0) > 0]
    if not trained:
        raise RowError("has no assistant turn with a weight above 0" if example.messages else "has no assistant turn")
    # Nothing after the last trained turn is ever seen by a trained token.
    messages, tools, last = chat.fitted(example.messages[: trained[-1] + 1]), example.tools, trained[-1]
    whole, tags = chat.render_tagged(messages, tools)
    check_context(chat, whole, messages, tools)
    if train_on == "all":
        prompt = find_turn(chat, messages, last, tools, (whole, tags)).prompt
        return [_sequence(chat, whole, (Span(0, len(whole), 1.0),), prompt)]
    kept = trained[-1:] if train_on == "last" else trained
    turns = [find_turn(chat, messages, k, tools, (whole, tags) if k == last else None) for k in kept]
    ends = [turn.end_in(whole, chat, open_ends=open_ends) for turn in turns]
    following = example.messages[last + 1 :]
    if None in ends:
        turns = [turn.ended(chat, [*messages[k + 1 :], *following]) for k, turn in zip(kept, turns, strict=True)]
        return [_sequence(chat, turn.text, narrowed(chat, turn.text, turn.tags, [turn.span()]), turn.prompt) for turn in turns]
    closing = turns[-1].ended(chat, following)
    if closing is not turns[-1]:
        whole, turns[-1], ends[-1] = closing.text, closing, None
    spans = narrowed(chat, whole, tags, [turn.span(end) for turn, end in zip(turns, ends, strict=True)])
    return [_sequence(chat, whole, spans, turns[-1].prompt)]


def _sequence(chat: Chat, text: str, spans: tuple[Span, ...], prompt: str) -> Rendered:
    """The text up to the last turn's last token."""
    text = text.rstrip()
    return Rendered(
        text, tuple(Span(span.start, min(span.end, len(text)), span.weight) for span in spans), text.endswith(chat.specials), prompt
    )


def encode_example(
    tokenizer: Any, example: Example, *, train_on: str = "assistant", template_kwargs: Mapping[str, Any] | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """A conversation as (ids, weights) sequences: `render_example`, then `tokenise`."""
    return tokenise(tokenizer, render_example(Chat(tokenizer, template_kwargs or {}), example, train_on=train_on))

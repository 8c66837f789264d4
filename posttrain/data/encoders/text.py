"""Plain text: loss on every token, documents closed by EOS and, by default, split to max_length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from posttrain.data.encoders.conversation import encode_conversations, truncate
from posttrain.data.encoders.registry import Drop, Encoded, EncodeSettings, Outcome, encoder, example_of
from posttrain.data.spans import encode_ids
from posttrain.errors import ConfigError, Problem
from posttrain.types import Example


@encoder("text")
def encode_documents(examples: Sequence[Example], tokenizer: Any, settings: EncodeSettings) -> list[Outcome]:
    """Documents as [BOS] text EOS; conversations through the chat template, every token trained."""
    documents = [example for example in examples if example.text is not None]
    chats = [example for example in examples if example.text is None]
    texts = iter(_documents(documents, tokenizer, settings))
    rendered = iter(_conversations(chats, tokenizer, settings))
    return [next(texts) if example.text is not None else next(rendered) for example in examples]


def _conversations(examples: Sequence[Example], tokenizer: Any, settings: EncodeSettings) -> list[Outcome]:
    if not examples:
        return []
    truncation = "right" if settings.truncation in ("auto", "split") else settings.truncation
    return encode_conversations(examples, tokenizer, replace(settings, truncation=truncation, train_on="all"))


def _documents(examples: Sequence[Example], tokenizer: Any, settings: EncodeSettings) -> list[Outcome]:
    if not examples:
        return []
    if settings.max_length < 2:
        raise ConfigError(Problem("max_length", "of a single token there is nothing to predict", "2 or more"))
    encoded = encode_ids(tokenizer, [str(example.text) for example in examples])
    bos = leading_bos(tokenizer)
    return [_document(framed(ids, bos, tokenizer.eos_token_id), settings) for ids in encoded]


def _document(ids: np.ndarray, settings: EncodeSettings) -> Outcome:
    if len(ids) < 2:
        return Drop("has no text")
    size = settings.max_length
    if len(ids) <= size:
        return [Encoded(example_of([(ids, np.ones(len(ids), np.float32))]))]
    if settings.truncation == "drop":
        return Drop(f"longer than max_length={size}")
    if settings.truncation in ("auto", "split"):
        return [Encoded(example_of([(chunk, np.ones(len(chunk), np.float32))])) for chunk in chunks(ids, size)]
    return [Encoded(example_of([truncate(ids, np.ones(len(ids), np.float32), settings)]), True)]


def chunks(ids: np.ndarray, size: int) -> list[np.ndarray]:
    """Pieces of at most `size` tokens; each begins with the last token of the one before, so that every token is a target once."""
    return [ids[start : start + size] for start in range(0, len(ids) - 1, size - 1)]


def framed(ids: np.ndarray, bos: int | None, eos: int | None) -> np.ndarray:
    """BOS in front and EOS behind, each where the tokenizer has one and the text does not have it already."""
    head = [bos] if bos is not None and (len(ids) == 0 or ids[0] != bos) else []
    tail = [eos] if eos is not None and (len(ids) == 0 or ids[-1] != eos) else []
    return np.concatenate([np.array(head, np.int32), ids, np.array(tail, np.int32)])


@lru_cache(maxsize=8)
def leading_bos(tokenizer: Any) -> int | None:
    """The BOS id if the tokenizer itself puts it in front of a text."""
    ids = tokenizer("a").input_ids
    return tokenizer.bos_token_id if ids and ids[0] == tokenizer.bos_token_id else None

"""Rendered text with spans as token ids with loss weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from posttrain.data.guard import GUARD
from posttrain.errors import ConfigError, Problem


@dataclass(frozen=True)
class Span:
    """Characters start..end of a rendered text with their loss weight."""

    start: int
    end: int
    weight: float


@dataclass(frozen=True)
class Rendered:
    """One sequence as text.

    spans: what is trained. closes: the text ends with a special token; if not, EOS is appended. prompt: what the model sees before it
    writes the sequence's last turn.
    """

    text: str
    spans: tuple[Span, ...]
    closes: bool
    prompt: str


def tokenise(tokenizer: Any, sequences: Sequence[Rendered]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Token ids (int32) and loss weights (float32) of each rendered sequence.

    A token is trained if it covers any character of a span. A doubled BOS is dropped; EOS closes a sequence that does not close itself.
    """
    encoded = encode_texts(tokenizer, [sequence.text for sequence in sequences])
    return [_weighted(tokenizer, ids, offsets, sequence) for (ids, offsets), sequence in zip(encoded, sequences, strict=True)]


def encode_texts(tokenizer: Any, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ids [T] and character offsets [T, 2] of each text, without added special tokens; GUARD has no tokens. ConfigError without offsets."""
    out = _encoded(tokenizer, texts, offsets=True)
    pairs = zip(out["input_ids"], out["offset_mapping"], strict=True)
    found = [(np.asarray(ids, np.int32), np.fromiter(chain.from_iterable(offsets), np.int64).reshape(-1, 2)) for ids, offsets in pairs]
    return [_without_guard(text, *tokens) if GUARD in text else tokens for text, tokens in zip(texts, found, strict=True)]


def encode_ids(tokenizer: Any, texts: Sequence[str]) -> list[np.ndarray]:
    """The ids of `encode_texts` without the offsets, which take more memory than all the rest. Raises ConfigError as it does."""
    if any(GUARD in text for text in texts):
        return [ids for ids, _ in encode_texts(tokenizer, texts)]
    return [np.asarray(ids, np.int32) for ids in _encoded(tokenizer, texts, offsets=False)["input_ids"]]


def _encoded(tokenizer: Any, texts: Sequence[str], *, offsets: bool) -> Mapping[str, Any]:
    if not tokenizer.is_fast:
        message = "a tokenizer that maps tokens to characters (a 'fast' one) is needed"
        raise ConfigError(Problem("model.tokenizer", message, "choose a fast tokenizer"))
    if not texts:
        return {"input_ids": [], "offset_mapping": []}
    options = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
    found: Mapping[str, Any] = tokenizer(list(texts), return_offsets_mapping=offsets, **options)
    return found


def _without_guard(text: str, ids: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    kept = np.array([text[start:end] != GUARD for start, end in offsets.tolist()], bool)
    return ids[kept], offsets[kept]


def _weighted(tokenizer: Any, ids: np.ndarray, offsets: np.ndarray, sequence: Rendered) -> tuple[np.ndarray, np.ndarray]:
    weights = span_weights(offsets, sequence.spans)
    if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
        ids, weights = ids[1:], weights[1:]
    if not sequence.closes and tokenizer.eos_token_id is not None:
        ids = np.append(ids, np.int32(tokenizer.eos_token_id))
        weights = np.append(weights, np.float32(sequence.spans[-1].weight))
    return ids, weights


def span_weights(offsets: np.ndarray, spans: Sequence[Span]) -> np.ndarray:
    """Float32 [T]: the weight of the span that a token overlaps, else 0.

    A token reaches from the end of the one before it: some tokenizers report it without its leading space.
    """
    ends = offsets[:, 1]
    before = np.concatenate([[0], np.maximum.accumulate(ends)[:-1]]) if len(ends) else ends
    starts = np.minimum(offsets[:, 0], before)
    weights = np.zeros(len(ends), np.float32)
    for span in spans:
        weights[(ends > span.start) & (starts < span.end)] = span.weight
    return weights

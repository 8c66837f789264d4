"""The interface of an encoder, and the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from posttrain.data.formats import Format, RowError
from posttrain.discovery import import_modules
from posttrain.errors import ConfigError, DataError, Problem
from posttrain.types import Example, TokenizedExample


@dataclass(frozen=True)
class EncodeSettings:
    """What decides how an Example becomes tokens. The fields are those of DataSettings; max_length bounds each sequence, in tokens."""

    max_length: int
    truncation: str = "auto"
    train_on: str = "assistant"
    system: str | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    attributes: Sequence[str] = ()


@dataclass(frozen=True)
class Encoded:
    """One tokenized example. answer, prompt: for examples that can be checked. truncated: whether tokens were cut off. facts: JSON, what a
    reward needs to know of a prompt."""

    tokens: TokenizedExample
    truncated: bool = False
    answer: str | None = None
    prompt: str | None = None
    facts: str | None = None


@dataclass(frozen=True)
class Drop:
    """A good row that leaves nothing to train on, and why."""

    reason: str


def example_of(sequences: Sequence[tuple[np.ndarray, np.ndarray]]) -> TokenizedExample:
    """Sequences as a token tree. The usual case of one stays clear of torch, which processes that only tokenize need not load."""
    if len(sequences) > 1:
        from posttrain.data.tree import tree_of

        return tree_of(sequences)
    ids, weights = sequences[0]
    weights = weights.astype(np.float32)  # a copy
    weights[0] = 0.0  # nothing predicts the first token
    whole, last = np.array([len(ids)], np.int32), np.array([len(ids) - 1], np.int32)
    return TokenizedExample(ids.astype(np.int32), weights, whole, np.array([-1], np.int32), last, np.array([np.nan], np.float32))


Outcome = list[Encoded] | Drop | RowError
Encoder = Callable[[Sequence[Example], Any, EncodeSettings], list[Outcome]]
_ENCODERS: dict[str, Encoder] = {}
_READS: dict[str, tuple[str, ...]] = {}


def encoder(kind: str, *, reads: tuple[str, ...] = ("conversation", "text")) -> Callable[[Encoder], Encoder]:
    """Register the decorated function as the encoder of `kind`: examples, tokenizer, settings -> one outcome an example.

    reads: kinds of the formats whose examples it understands.
    """

    def add(function: Encoder) -> Encoder:
        _ENCODERS[kind], _READS[kind] = function, reads
        return function

    return add


@cache
def encoders() -> Mapping[str, Encoder]:
    """Every encoder by kind; imports the modules of this folder on first use."""
    import_modules("posttrain.data.encoders")
    return _ENCODERS


def check_format(kind: str, form: Format, where: str) -> None:
    """Raises DataError where an encoder of `kind` can make nothing of a format's examples."""
    if form.kind not in readable(kind):
        message = f"the rows are of format {form.name}, which holds data of kind {form.kind}; the method trains on {kind}"
        raise DataError(Problem(where, message, "choose another method, or other data"))


def readable(kind: str) -> tuple[str, ...]:
    """The kinds of formats whose examples the encoder of `kind` understands. Raises ConfigError where there is none."""
    get(kind)
    return _READS[kind]


def get(kind: str) -> Encoder:
    """The encoder of `kind`. Raises ConfigError where there is none."""
    if kind not in encoders():
        raise ConfigError(Problem("method", f"there is no data of kind {kind!r}", f"known kinds: {', '.join(sorted(encoders()))}"))
    return encoders()[kind]

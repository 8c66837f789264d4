"""The interface of an encoder, and the registry."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from posttrain.data.formats import RowError
from posttrain.errors import ConfigError, Problem
from posttrain.types import Example, TokenizedExample


@dataclass(frozen=True)
class EncodeSettings:
    """What decides how an Example becomes tokens. The fields are those of DataSettings; max_length bounds each sequence, in tokens."""

    max_length: int
    truncation: str = "auto"
    train_on: str = "assistant"
    system: str | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Encoded:
    """One tokenized example. answer, prompt: for examples that can be checked. truncated: whether tokens were cut off."""

    tokens: TokenizedExample
    truncated: bool = False
    answer: str | None = None
    prompt: str | None = None


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
    return TokenizedExample(ids.astype(np.int32), weights, np.array([len(ids)], np.int32), np.array([-1], np.int32))


Outcome = list[Encoded] | Drop | RowError
Encoder = Callable[[Sequence[Example], Any, EncodeSettings], list[Outcome]]
_ENCODERS: dict[str, Encoder] = {}


def encoder(kind: str) -> Callable[[Encoder], Encoder]:
    """Register the decorated function as the encoder of `kind`: examples, tokenizer, settings -> one outcome an example."""

    def add(function: Encoder) -> Encoder:
        _ENCODERS[kind] = function
        return function

    return add


@cache
def encoders() -> Mapping[str, Encoder]:
    """Every encoder by kind; imports the modules of this folder on first use."""
    package = importlib.import_module("posttrain.data.encoders")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return _ENCODERS


def get(kind: str) -> Encoder:
    """The encoder of `kind`. Raises ConfigError where there is none."""
    if kind not in encoders():
        raise ConfigError(Problem("method", f"there is no data of kind {kind!r}", f"known kinds: {', '.join(sorted(encoders()))}"))
    return encoders()[kind]

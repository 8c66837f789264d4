"""What a policy sampled and how it was judged: P prompts with G answers each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from posttrain.types.trees import TokenizedExample

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@dataclass(frozen=True)
class Completion:
    """One sampled answer.

    tokens: int32 [L], as sampled, what ended it included (a stop token, the tokens of a stop string). logps: float32 [L], log-probability
    of each token under the model at the sampling temperature, before any truncation (top-k, top-p, min-p) or penalty: what the trainer
    computes. Greedy answers (temperature 0) have those of temperature 1. finish: stop, or length where max_new_tokens cut it off.
    drawn: float32 [L], under the distribution that it was drawn from, where truncation or a penalty makes that another one; else None.
    """

    tokens: np.ndarray
    logps: np.ndarray
    finish: Literal["stop", "length"]
    drawn: np.ndarray | None = None


@dataclass(frozen=True)
class Sample:
    """A sampled answer as a reward sees it.

    prompt: messages. completion: its text, without what ended it. length: tokens, with what ended it. finish: see Completion.
    answer: the expected one, None if there is none. meta: what a verifier may need (tests, entry point, language ...). group: the same
    number for all answers to one prompt of a batch.
    """

    prompt: tuple[Mapping[str, Any], ...]
    completion: str
    length: int
    finish: Literal["stop", "length"]
    answer: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    group: int = 0


@dataclass(frozen=True)
class GroupRewards:
    """Rewards of G answers to each of P prompts, float64; NaN where an answer could not be scored.

    total: [P, G]. parts: [K, P, G], the components before their weights. weights: [K].
    """

    total: Tensor
    parts: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Group:
    """A prompt and the answers sampled to it. example: its number in the data. prompt: int32 [P]. place: its own in the run's order."""

    example: int
    prompt: np.ndarray
    completions: tuple[Completion, ...]
    place: int = 0


@dataclass(frozen=True)
class Rollout:
    """What a policy sampled at one moment, the same on every rank. number: of the rollout in the run. groups: P of them, all of G answers.

    rewards: of their answers. kept: bool [P, G], the answers that are learnt from.
    """

    number: int
    groups: tuple[Group, ...]
    rewards: GroupRewards
    kept: np.ndarray


@dataclass(frozen=True)
class Arrangement:
    """Which answers of a rollout the loss reads together.

    units: of each group, answers by number, such as (chosen, rejected); an answer may be in several units. None: each kept answer is read
    by itself. notes: what is reported of the rollout.
    """

    units: tuple[tuple[tuple[int, ...], ...], ...] | None = None
    notes: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """Some of the answers of a rollout's group, as one tree. group: which group. answers: which of its answers, in the tree's order.

    The tree's marks are the ends of the answers that the loss reads, unit after unit; an answer in several units has several.
    """

    group: int
    answers: tuple[int, ...]
    tree: TokenizedExample

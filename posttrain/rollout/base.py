"""Generators: what samples answers from the policy, and the request they take."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from transformers import PreTrainedTokenizerBase

from posttrain.models.decoding import stop_tokens
from posttrain.models.policy import PolicyModel
from posttrain.rollout.stops import Stops
from posttrain.types import Completion


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    max_new_tokens: most tokens of an answer. temperature: 0 = the most likely token. top_k: most candidates, None for all. top_p: smallest
    set of candidates with this much probability (arXiv:1904.09751). min_p: candidates at least this share of the best one's probability
    (arXiv:2407.01082). repetition_penalty: divides (multiplies, if negative) logits of tokens seen before (arXiv:1909.05858, section 4.1).
    stop: texts that end an answer, besides the tokens that end a turn.
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError naming the first value that no distribution can be drawn with."""
        wrong = {
            "max_new_tokens": self.max_new_tokens < 1, "temperature": self.temperature < 0,
            "top_k": self.top_k is not None and self.top_k < 1, "top_p": not 0 < self.top_p <= 1, "min_p": not 0 <= self.min_p <= 1,
            "repetition_penalty": self.repetition_penalty <= 0, "stop": "" in self.stop,
        }  # fmt: skip
        for name in (name for name, bad in wrong.items() if bad):
            raise ValueError(f"{name}={getattr(self, name)!r} is out of range")

    @property
    def penalises(self) -> bool:
        """Whether tokens seen before matter."""
        return self.repetition_penalty != 1.0

    @property
    def steers(self) -> bool:
        """Whether tokens are drawn from another distribution than softmax(logits / temperature): truncated, or penalised."""
        truncates = self.top_k is not None or self.top_p < 1.0 or self.min_p > 0.0
        return self.temperature > 0 and (truncates or self.penalises)


@dataclass(frozen=True)
class Request:
    """A prompt to answer several times. prompt: int [P] token ids. samples: answers wanted. seed: decides all of them, whatever else is
    answered at the same time."""

    prompt: np.ndarray
    samples: int
    seed: int


class Generator(ABC):
    """Samples answers from a policy. A leaf states how in `generate`.

    runs_policy: whether `generate` runs the policy of this process, which then has to be whole.
    """

    runs_policy: ClassVar[bool] = True

    def __init__(
        self,
        *,
        group_size: int = 8,
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: Sequence[str] = (),
    ) -> None:
        self.group_size = group_size
        self.sampling = Sampling(max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty, tuple(stop))
        self._stops: dict[tuple[tuple[int, ...], tuple[str, ...]], Stops] = {}

    def attach(self, policy: PolicyModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Called once, when the policy is on its device."""
        self.policy, self.tokenizer = policy, tokenizer

    def refresh(self) -> None:  # noqa: B027 (most generators read the policy itself and have nothing to do)
        """Called before a batch of requests whenever the policy's weights may have changed."""

    def measures(self) -> Mapping[str, float]:
        """What is to be logged of the sampler itself, since the last `refresh`; the same on every rank."""
        return {}

    def drawing(self, tokens: int) -> float:
        """Floating-point operations of drawing so many tokens, besides those of the policy that are the same however it samples."""
        return 0.0

    def stops(self, sampling: Sampling) -> Stops:
        """What ends an answer: the end tokens of the tokenizer and the model, and the stop strings."""
        key = tuple(stop_tokens(self.policy.model, self.tokenizer)), sampling.stop
        if key not in self._stops:
            self._stops[key] = Stops(*key, self.tokenizer)
        return self._stops[key]

    @abstractmethod
    def generate(self, requests: Sequence[Request], *, sampling: Sampling | None = None) -> list[list[Completion]]:
        """`samples` answers to each request, in order. sampling: instead of the configured one."""

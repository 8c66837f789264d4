"""How long an answer is, and how much of it repeats itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from posttrain.errors import ConfigError, Problem
from posttrain.rewards.base import Reward
from posttrain.types import Sample

MEASURES: dict[str, Callable[[Sample], int]] = {
    "tokens": lambda sample: sample.length,
    "characters": lambda sample: len(sample.completion),
    "words": lambda sample: len(sample.completion.split()),
}


class Length(Reward):
    """0 within `tolerance` of `target`, then down to -1 in proportion: -over * excess / target, -under * shortfall / target.

    target, tolerance: in `unit`. over, under: slopes above and below; 0 for no penalty on that side.
    """

    def __init__(
        self,
        *,
        target: int = 200,
        tolerance: int = 0,
        over: float = 1.0,
        under: float = 0.0,
        unit: Literal["tokens", "characters", "words"] = "tokens",
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if target < 1:
            raise ConfigError(Problem("reward.length.target", f"expected an integer >= 1, got {target}"))
        self.target, self.tolerance, self.over, self.under, self.unit = target, tolerance, over, under, unit

    def measure(self, samples: Sequence[Sample]) -> list[float]:
        """As `Reward`."""
        return [self.of(MEASURES[self.unit](sample)) for sample in samples]

    def of(self, length: int) -> float:
        """The value of a length."""
        excess = max(0, length - self.target - self.tolerance)
        shortfall = max(0, self.target - self.tolerance - length)
        return max(-1.0, 0.0 - (self.over * excess + self.under * shortfall) / self.target)


class Overlong(Reward):
    """Soft punishment of answers near the length limit (DAPO, arXiv:2503.14476, equation 13), in tokens.

    0 up to max_new_tokens - cache; (max_new_tokens - cache - length) / cache up to max_new_tokens; -1 beyond.
    max_new_tokens: the limit of the rollout. cache: tokens before it where the punishment grows; None for a fifth of it, as in the paper.
    """

    def __init__(self, *, max_new_tokens: int, cache: int | None = None, **common: Any) -> None:
        super().__init__(**common)
        self.limit, self.cache = max_new_tokens, max(1, max_new_tokens // 5) if cache is None else cache
        if not 1 <= self.cache <= self.limit:
            raise ConfigError(Problem("reward.overlong.cache", f"expected 1 to max_new_tokens = {self.limit}, got {self.cache}"))

    def measure(self, samples: Sequence[Sample]) -> list[float]:
        """As `Reward`."""
        return [self.of(sample.length) for sample in samples]

    def of(self, length: int) -> float:
        """The value of a length."""
        if length > self.limit:
            return -1.0
        return min(0.0, (self.limit - self.cache - length) / self.cache)


class Repetition(Reward):
    """-(1 - different n-grams / n-grams) of the words (arXiv:2502.03373, appendix): 0 where nothing repeats, towards -1 for a loop.

    ngram: words in a row. Answers that are shorter have 0.
    """

    def __init__(self, *, ngram: int = 3, **common: Any) -> None:
        super().__init__(**common)
        if ngram < 1:
            raise ConfigError(Problem("reward.repetition.ngram", f"expected an integer >= 1, got {ngram}"))
        self.ngram = ngram

    def measure(self, samples: Sequence[Sample]) -> list[float]:
        """As `Reward`."""
        return [self.of(sample.completion.lower().split()) for sample in samples]

    def of(self, words: Sequence[str]) -> float:
        """The value of a list of words."""
        grams = list(zip(*(words[start:] for start in range(self.ngram)), strict=False))
        return len(set(grams)) / len(grams) - 1 if grams else 0.0

"""A heuristic of harmlessness and form (Gemma Alignment Paradigms)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from posttrain.rewards.base import Reward
from posttrain.rewards.wording import TOXIC, words
from posttrain.types import Sample


class Heuristic(Reward):
    """max(0, 1 - toxic - length - repetition).

    toxic: toxic_weight * ratio of listed words to all words, where the ratio is above toxic_ratio. length: length_weight, where the text
    has fewer than `shortest` or more than `longest` characters. repetition: repetition_weight * (least_unique - different words / words),
    where that is above 0. An empty text has no words: only its length counts.

    toxic_words: lower case; null for a short list of our own, since the source does not give its list.
    """

    def __init__(
        self,
        *,
        toxic_weight: float = 0.5,
        toxic_ratio: float = 0.3,
        toxic_words: Sequence[str] | None = None,
        length_weight: float = 0.0,
        shortest: int = 20,
        longest: int = 1000,
        repetition_weight: float = 0.1,
        least_unique: float = 0.5,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        self.toxic_weight, self.toxic_ratio = toxic_weight, toxic_ratio
        self.toxic_words: Collection[str] = frozenset(TOXIC if toxic_words is None else toxic_words)
        self.length_weight, self.shortest, self.longest = length_weight, shortest, longest
        self.repetition_weight, self.least_unique = repetition_weight, least_unique

    def measure(self, samples: Sequence[Sample]) -> list[float]:
        """As `Reward`."""
        return [self.of(sample.completion) for sample in samples]

    def of(self, text: str) -> float:
        """The value of a text."""
        found = words(text)
        count = max(1, len(found))
        ratio = sum(word in self.toxic_words for word in found) / count
        unique = len(set(found)) / count if found else 1.0
        toxic = self.toxic_weight * ratio if ratio > self.toxic_ratio else 0.0
        length = 0.0 if self.shortest <= len(text) <= self.longest else self.length_weight
        return max(0.0, 1.0 - toxic - length - self.repetition_weight * max(0.0, self.least_unique - unique))

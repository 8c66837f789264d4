"""What a reward component is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

from posttrain.types import Sample


class Reward(ABC):
    """One component of a reward: a number for each sampled answer. A leaf states it in `measure`.

    weight: of this component in the sum. normalise: none; batch or group: subtract the mean and divide by the standard deviation of all
    answers of a rollout, or of the answers to one prompt. clip: bound of the (normalised) value, both ways; None for none. difficulty:
    lambda in value * (1 + lambda * (1 - share of the group's answers above 0)), which makes rare successes count more. timeout: seconds
    that one answer may take. isolated: whether `measure` runs in a process of its own, which is ended when it takes longer.
    """

    isolated: ClassVar[bool] = False

    def __init__(
        self,
        *,
        weight: float = 1.0,
        normalise: Literal["none", "batch", "group"] = "none",
        clip: float | None = None,
        difficulty: float = 0.0,
        timeout: float = 10.0,
    ) -> None:
        self.weight, self.normalise, self.clip, self.difficulty, self.timeout = weight, normalise, clip, difficulty, timeout

    @abstractmethod
    def measure(self, samples: Sequence[Sample]) -> list[float]:
        """A value for each answer, in order; NaN for one that cannot be scored."""

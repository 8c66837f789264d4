"""What a reward component is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from posttrain.types import Sample

Normalise = Literal["none", "batch", "group"]


class Unscored(float):
    """The value of an answer that could not be scored: NaN that says why. reason: a few words, then a colon and details if any."""

    reason: str

    def __new__(cls, reason: str) -> Unscored:
        value = super().__new__(cls, "nan")
        value.reason = reason
        return value

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (self.reason,)


def said(error: BaseException) -> str:
    """An error in one line: its kind, a colon, its text."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


class Reward(ABC):
    """One component of a reward: a number for each sampled answer. A leaf states it in `measure`.

    weight: of this component in the sum; 0 only watches it. normalise: none; batch or group: subtract the mean and divide by the standard
    deviation of all answers of a rollout, or of the answers to one prompt. clip: bound of the (normalised) value, both ways; None for
    none. difficulty: lambda in value * (1 + lambda * (1 - share of the group's answers above 0)), which makes rare successes count more.
    isolated: whether `measure` runs in processes of its own, see `Isolated`. compares: whether it compares the answers of a group, so
    that it must see groups whole. needs_answer: whether it compares with the answer that the data expect.
    """

    isolated: ClassVar[bool] = False
    compares: ClassVar[bool] = False
    needs_answer: ClassVar[bool] = False

    def __init__(
        self,
        *,
        weight: float = 1.0,
        normalise: Normalise = "none",
        clip: float | None = None,
        difficulty: float = 0.0,
    ) -> None:
        self.weight, self.normalise, self.clip, self.difficulty = weight, normalise, clip, difficulty

    @abstractmethod
    def measure(self, samples: Sequence[Sample]) -> list[float]:
        """A value for each answer, in order; NaN (best `Unscored`) for one that cannot be scored."""

    @property
    def operations(self) -> float:
        """Floating-point operations of its own model in this process so far."""
        return 0.0

    def place(self, device: str) -> None:  # noqa: B027
        """Where the policy is, for components with `device=auto`; called before `start`."""

    def check(self) -> None:  # noqa: B027
        """Raises ConfigError for what can be told to fail before anything is loaded."""

    def start(self) -> None:  # noqa: B027
        """Load what `measure` needs, where it runs (an isolated component: in its processes). Raises ConfigError where that fails."""


class Isolated(Reward):
    """A component that runs in processes of its own, since it may hang, crash or eat memory: that costs the answer at hand, no more.

    timeout: seconds that one answer may take. Code that can be interrupted is, at four fifths of them; what goes on is ended.
    workers: processes. memory_gb: GiB that a process may take besides what it needs to start; None for any.
    """

    isolated: ClassVar[bool] = True

    def __init__(self, *, timeout: float = 10.0, workers: int = 2, memory_gb: float | None = 4.0, **common: Any) -> None:
        super().__init__(**common)
        self.timeout, self.workers, self.memory_gb = timeout, workers, memory_gb

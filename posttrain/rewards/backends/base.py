"""What answers a judge's questions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

VERDICTS = ("Verdict: [[A]]", "Verdict: [[B]]", "Verdict: [[C]]")


@dataclass(frozen=True)
class Question:
    """What a judge is asked.

    messages: as a language model is asked. Further, for backends that follow rules: answers: what is judged, one (rated) or two (compared).
    verdicts: what a comparison says where the first is better, the second, or neither.
    """

    messages: tuple[Mapping[str, Any], ...]
    answers: tuple[str, ...]
    verdicts: tuple[str, str, str] = VERDICTS


@dataclass(frozen=True)
class Silence:
    """No reply. reason: a few words, then a colon and details if any."""

    reason: str


@dataclass(frozen=True)
class CutOff(Silence):
    """A reply that was cut off before its end, which is no verdict. text: what there is of it."""

    text: str


class Backend(ABC):
    """Replies to questions."""

    @abstractmethod
    def ask(self, questions: Sequence[Question]) -> list[str | Silence]:
        """A reply to each, in order. Raises nothing that one question is to blame for."""

    @property
    def stand_in(self) -> str:
        """The rule, in words, that decides in place of a model's opinion; empty where a model judges."""
        return ""

    @property
    def operations(self) -> float:
        """Floating-point operations of a model in this process so far; what another machine computes is not known."""
        return 0.0

    def place(self, device: str) -> None:  # noqa: B027
        """Where the policy is, for backends with `device=auto`."""

    def check(self) -> None:  # noqa: B027
        """Raises ConfigError for what can be told to fail before anything is loaded."""

    def start(self) -> None:  # noqa: B027
        """Load what is needed. Raises ConfigError where that fails."""

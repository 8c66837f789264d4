"""Final answers compared with the expected one: exactly, as numbers, as the letter of an option."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from posttrain.rewards.agreement import Amount, amount, divided, gives, one_unit
from posttrain.rewards.answers import final_answer, same_answer
from posttrain.rewards.base import Reward, Unscored
from posttrain.rewards.choices import choice_letter
from posttrain.types import Sample

NO_ANSWER = "no expected answer: the data has none"


class Matching(Reward):
    """right: the value of an answer that matches. wrong: of one that does not."""

    needs_answer: ClassVar[bool] = True

    def __init__(self, *, right: float = 1.0, wrong: float = 0.0, **common: Any) -> None:
        super().__init__(**common)
        self.right, self.wrong = right, wrong

    def measure(self, samples: Sequence[Sample]) -> list[float]:
        """As `Reward`; Unscored where the data expects no answer."""
        return [self._value(sample.completion, sample.answer) for sample in samples]

    def _value(self, completion: str, answer: str | None) -> float:
        if answer is None:
            return Unscored(NO_ANSWER)
        return self.right if self.matches(completion, answer) else self.wrong

    @abstractmethod
    def matches(self, completion: str, answer: str) -> bool:
        """Whether the completion gives the expected answer."""


class ExactMatch(Matching):
    """The final answer (see `answers.final_answer`), or the whole text, is the expected one, as an exact number or as the same text.

    extract: whether to look for the final answer; else the whole completion is compared.
    """

    def __init__(self, *, extract: bool = True, **common: Any) -> None:
        super().__init__(**common)
        self.extract = extract

    def matches(self, completion: str, answer: str) -> bool:
        """See the class."""
        return (gives if self.extract else same_answer)(completion, final_of(answer))


class Numeric(Matching):
    """The final answer is a number near the expected one: |a - b| <= max(absolute, relative * |b|), with no other unit than that.

    Numbers beyond 1.8e308 are compared with none."""

    def __init__(self, *, absolute: float = 0.0, relative: float = 1e-6, **common: Any) -> None:
        super().__init__(**common)
        self.absolute, self.relative = absolute, relative

    def measure(self, samples: Sequence[Sample]) -> list[float]:
        """As `Matching`; Unscored too where the expected answer is no finite number."""
        return [
            Unscored("the expected answer is no number: " + sample.answer[:80])
            if sample.answer is not None and not _is_finite(amount(final_of(sample.answer)))
            else self._value(sample.completion, sample.answer)
            for sample in samples
        ]

    def matches(self, completion: str, answer: str) -> bool:
        """See the class."""
        said, meant = final_answer(completion) or "", final_of(answer)
        given, wanted = amount(said), amount(meant)
        if given is None or wanted is None or not one_unit(given, wanted) or not divided(said, meant):
            return False
        found, expected = given.number, wanted.number
        near = max(self.absolute, self.relative * abs(expected))
        return math.isfinite(found) and math.isfinite(expected) and abs(found - expected) <= near


class Choice(Matching):
    """The option that the completion picks (see `choices.choice_letter`) is the expected letter."""

    def __init__(self, *, letters: str = "ABCDE", **common: Any) -> None:
        super().__init__(**common)
        self.letters = letters

    def matches(self, completion: str, answer: str) -> bool:
        """See the class."""
        picked = choice_letter(completion, self.letters)
        return picked is not None and picked == (choice_letter(answer, self.letters) or answer.strip().upper())


def _is_finite(value: Amount | None) -> bool:
    return value is not None and math.isfinite(value.number)


def final_of(answer: str) -> str:
    """The final answer of a reference: what follows its marks (boxed, ####) if it is a worked solution, else all of it."""
    marked = "\\boxed" in answer or "####" in answer
    return (final_answer(answer) if marked else None) or answer

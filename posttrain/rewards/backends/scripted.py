"""A judge that follows a rule, for tests and demonstrations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from posttrain.errors import ConfigError, Problem
from posttrain.rewards.backends.base import Backend, Question, Silence

RULES: dict[str, Callable[[str, str], float]] = {
    "shorter": lambda answer, _: max(0.0, 1 - len(answer) / 450),
    "longer": lambda answer, _: min(1.0, len(answer) / 450),
    "contains": lambda answer, text: float(text in answer),
}
KEYS: dict[str, Callable[[str, str], float]] = {
    "shorter": lambda answer, _: -len(answer),
    "longer": lambda answer, _: len(answer),
    "contains": RULES["contains"],
}


class Scripted(Backend):
    """Prefers the shorter answer, the longer one, or one that contains `text`. Its ratings from 1 to 10 change with 50 characters."""

    def __init__(self, *, prefer: Literal["shorter", "longer", "contains"] = "shorter", text: str = "") -> None:
        if (prefer == "contains") != bool(text):
            message = "prefer=contains needs a text" if prefer == "contains" else "is for prefer=contains"
            raise ConfigError(Problem("reward.judge.backend.text", message))
        self.prefer, self.text = prefer, text

    @property
    def stand_in(self) -> str:
        """See `Backend`."""
        return f"an answer that contains {self.text!r} wins" if self.text else f"the {self.prefer} answer wins"

    def ask(self, questions: Sequence[Question]) -> list[str | Silence]:
        """As a model would write it: `Rating: [[7]]`, or the question's verdict."""
        return [self._rate(*question.answers) if len(question.answers) == 1 else self._compare(question) for question in questions]

    def _rate(self, answer: str) -> str:
        return f"Rating: [[{1 + round(9 * RULES[self.prefer](answer, self.text))}]]"

    def _compare(self, question: Question) -> str:
        a, b = (KEYS[self.prefer](answer, self.text) for answer in question.answers)
        return question.verdicts[2 if a == b else 0 if a > b else 1]

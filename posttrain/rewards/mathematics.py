"""Mathematical answers: exact comparison first, then math-verify, in a process of its own."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

from posttrain.rewards.answers import as_number, final_answer, same_answer
from posttrain.rewards.base import Isolated, Unscored
from posttrain.rewards.matching import NO_ANSWER, final_of
from posttrain.types import Sample

LONGEST = 2000  # characters: a longer final answer is only compared as it is
_FORMULA = re.compile(r"[\d\\^+*/=<>(\[{-]")


class Math(Isolated):
    r"""Whether the final answer equals the expected one: `1/2 = 0.5 = \frac12`, `1,234 = 1234`, `x+1 = 1+x`, `{1,2} = {2,1}`.

    The final answer: the last closed box, what follows ####, what follows "answer is", the last number (`answers.final_answer`). It is
    compared exactly first (`answers.same_answer`); where that says no, math-verify decides, unless both are whole numbers or the expected
    answer is plain words. An answer it cannot read is wrong, one on which it takes too long or crashes is not scored.

    right: the value of an answer that matches. wrong: of one that does not. symbolic: whether math-verify is asked at all.
    """

    needs_answer: ClassVar[bool] = True

    def __init__(
        self,
        *,
        right: float = 1.0,
        wrong: float = 0.0,
        symbolic: bool = True,
        timeout: float = 5.0,
        memory_gb: float | None = 1.0,
        **common: Any,
    ) -> None:
        super().__init__(timeout=timeout, memory_gb=memory_gb, **common)
        self.right, self.wrong, self.symbolic = right, wrong, symbolic

    def start(self) -> None:
        """Import math-verify, which takes most of a second."""
        if self.symbolic:
            equivalent("1", "x")

    def measure(self, samples: Sequence[Sample]) -> list[float]:
        """As `Reward`; Unscored where the data expects no answer."""
        return [self._value(sample) for sample in samples]

    def _value(self, sample: Sample) -> float:
        if sample.answer is None:
            return Unscored(NO_ANSWER)
        found, expected = final_answer(sample.completion), final_of(sample.answer)
        if found is None:
            return self.wrong
        same = same_answer(found, expected) or (self.symbolic and not decided(found, expected) and equivalent(found, expected))
        return self.right if same else self.wrong


def decided(found: str, expected: str) -> bool:
    """Whether the exact comparison has the last word: of whole numbers, of words (letters would be variables), of very long answers."""
    if max(len(found), len(expected)) > LONGEST or not _FORMULA.search(expected):
        return True
    numbers = as_number(found), as_number(expected)
    return all(number is not None and number.is_integer() for number in numbers)


@lru_cache(maxsize=4096)
def equivalent(found: str, expected: str) -> bool:
    """Whether math-verify takes two answers to be equal. Takes any time and memory: call it in a process of its own."""
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time limit is off: ours is on
    no_limit: Any = None
    parsed, truth = (parse(_delimited(text), parsing_timeout=no_limit) for text in (found, expected))
    return bool(parsed and truth) and verify(truth, parsed, timeout_seconds=None)


def _delimited(answer: str) -> str:
    r"""The answer between dollars, where math-verify looks for LaTeX."""
    return f"${answer.strip().strip('$')}$"

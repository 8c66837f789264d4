"""Mathematical answers: exact comparison first, then math-verify, in a process of its own."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

from posttrain.rewards.agreement import amount, gives
from posttrain.rewards.answers import final_answer
from posttrain.rewards.base import Isolated, Unscored
from posttrain.rewards.forms import in_value_form, same_brackets
from posttrain.rewards.matching import NO_ANSWER, final_of
from posttrain.types import Sample

LONGEST = 2000  # characters: a longer final answer is only compared as it is
_FORMULA = re.compile(r"[\d\\^+*/=<>(\[{-]")
_SUBSCRIPT = re.compile(r"_\s*(\{(?:[^{}]|\{[^{}]*\})*\}|\w)")
_UNIT = re.compile(r"\d[^\\]*\\(?:text|mathrm|mbox|textrm)\{\s*([a-zA-Z][a-zA-Z\s.]*)\}$")
CLOSE = 1e-6  # relative: math-verify rounds to six digits behind the point, whatever the size


class Math(Isolated):
    r"""Whether the final answer equals the expected one: `1/2 = 0.5 = \frac12`, `1,234 = 1234`, `x+1 = 1+x`, `{1,2} = {2,1}`.

    The final answer: the last closed box, what stands in <answer> tags, what follows ####, what follows "answer is", the last number
    (`answers.final_answer`). It, or the whole text, is compared exactly first (`agreement.gives`); where that says no, math-verify
    decides, unless both are numbers, the expected answer is plain words, or the two differ in a subscript (`12_5`: the base of a number),
    a unit or the brackets of a list, which it does not look at. An expression that is left to carry out is wrong: `47+35` for 82
    (`forms.in_value_form`). An answer it cannot read is wrong, one on which it takes too long or crashes is not scored.

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
        if gives(sample.completion, expected):
            return self.right
        asked = self.symbolic and found is not None and not decided(found, expected)
        return self.right if asked and equivalent(found or "", expected) else self.wrong


def decided(found: str, expected: str) -> bool:
    """Whether the exact comparison has the last word: of numbers, of words (letters would be variables), of very long answers, and where
    an operation is left to carry out, or subscripts, units or brackets differ."""
    if max(len(found), len(expected)) > LONGEST or not _FORMULA.search(expected):
        return True
    if amount(found) is not None and amount(expected) is not None:
        return True
    if not in_value_form(found, expected) or not same_brackets(found, expected):
        return True
    units = _unit(found), _unit(expected)
    return _subscripts(found) != _subscripts(expected) or (all(units) and units[0] != units[1])


def _subscripts(answer: str) -> list[str]:
    return [re.sub(r"[\s{}]|\\text|\\mathrm", "", given).casefold() for given in _SUBSCRIPT.findall(answer)]


def _unit(answer: str) -> str:
    """The words that end an answer in \\text{...}, without spaces and a plural's s; empty for none."""
    match = _UNIT.search(answer.strip().strip("$").removesuffix("."))
    return re.sub(r"[\s.]", "", match[1]).casefold().removesuffix("s") if match else ""


@lru_cache(maxsize=4096)
def equivalent(found: str, expected: str) -> bool:
    """Whether math-verify takes two answers to be equal. Takes any time and memory: call it in a process of its own."""
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time limit is off: ours is on
    no_limit: Any = None
    parsed, truth = (parse(_delimited(text), parsing_timeout=no_limit) for text in (found, expected))
    return bool(parsed and truth) and verify(truth, parsed, timeout_seconds=None) and _close(parsed[0], truth[0])


def _close(one: Any, other: Any) -> bool:
    """Whether two parsed answers, where both are numbers, are equal within CLOSE of their size."""
    import sympy

    if not all(isinstance(value, sympy.Expr) and value.is_number for value in (one, other)):
        return True
    try:
        values = [complex(value) for value in (one, other)]
    except (TypeError, ValueError, OverflowError):  # infinite, or not to be evaluated
        return True
    return abs(values[0] - values[1]) <= CLOSE * max(map(abs, values))


def _delimited(answer: str) -> str:
    r"""The answer between dollars, where math-verify looks for LaTeX."""
    return f"${answer.strip().strip('$')}$"

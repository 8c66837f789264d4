r"""Whether an answer that was found agrees with the expected one, where either may say more than the bare answer. Never raises.

Besides what is the same (`answers.same_answer`), numbers agree that stand among words: ``18 dollars``, ``approximately 42``,
``42, since 40+2=42``, ``42 (forty-two)`` agree with ``42``. Wherever both name a unit it has to be the same: ``5 cm`` does not agree with
``5 m``. Not taken for the number: one of several (``5 or 6``), one that a word changes (``not 42``, ``18 million``, ``at least 3``), one in
a formula (``x = 5``, ``5x``, ``5!``). A division that is left undone (``246/3``) does not agree with a whole number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from posttrain.rewards.answers import FRACTION, NUMBER, final_answer, normalised, rational, same_answer

_REASON = re.compile(r"[\s,;(:-]{1,4}(?:since|because|as)\b")
_WORDS = re.compile(r"[^\W\d_]+")
_BEFORE = re.compile(r"(?:[^\W\d_]|[\s,:'~\u2248\u20ac\u00a3])*")
_AFTER = re.compile(r"(?:(?: |-)?[^\W\d_]{2,}| [mgslhkjwvn]\b|[,;(:])(?:[^\W\d_]|[\s,;:.'\"()?!/-])*")
_CHANGES = re.compile(
    r"\b(?:not|no|never|wrong|incorrect|isn't|nor|or|either|between|than|least|most|over|under|above|below|almost|nearly|half|twice|double|triple"
    r"|negative|minus|plus|times|squared?|cubed?|root|power|factorial|mod|modulo|choose|divided|hundred|thousand|[mb]illion|trillion|dozen|score"
    r"|pi|sin|cos|tan|log|ln|exp|sqrt|and an?|and one)\b"
)
_LONGEST = 400  # characters: in a longer text no amount is looked for


@dataclass(frozen=True)
class Amount:
    """A number and the words behind it, without a plural's s."""

    value: Fraction
    unit: tuple[str, ...]

    @property
    def number(self) -> float:
        """The value, infinite if too large."""
        try:
            return float(self.value)
        except OverflowError:
            return float("inf") if self.value > 0 else float("-inf")


def gives(text: str, expected: str) -> bool:
    """Whether the final answer of `text` agrees with the expected one, or all of the text is it."""
    return agrees(final_answer(text) or "", expected) or (same_answer(text, expected) and divided(text, expected))


def agrees(found: str, expected: str) -> bool:
    """Whether a final answer as it was found is the expected one. What agrees: see the module."""
    return divided(found, expected) and same_value(found, expected)


def same_value(a: str, b: str) -> bool:
    """Whether two answers are the same, or amounts of one value and of no different units; symmetric."""
    if same_answer(a, b):
        return True
    left, right = amount(a), amount(b)
    return left is not None and right is not None and left.value == right.value and one_unit(left, right)


def divided(found: str, expected: str) -> bool:
    """Whether no division to a whole number is left undone that the expected answer does not have either."""
    value = rational(normalised(found)) if _divides(found) else None
    return value is None or value.denominator != 1 or _divides(expected)


def amount(answer: str) -> Amount | None:
    """The one number that an answer names, and its unit; None where there is none, several, or one in a formula. See the module."""
    text = _REASON.split(normalised(answer), maxsplit=1)[0] if len(answer) <= _LONGEST else ""
    found = [match for pattern in (FRACTION, NUMBER) for match in pattern.finditer(text)][:2]
    if found and found[0].re is FRACTION:
        found = [
            found[0],
            *(match for match in NUMBER.finditer(text) if match.start() >= found[0].end() or match.end() <= found[0].start()),
        ]
    if len(found) != 1:
        return None
    before, after = text[: found[0].start()], text[found[0].end() :]
    signed = before.endswith("-") and not before[-2:-1].strip()
    before = before.removesuffix("-") if signed else before
    value = rational(found[0][0])
    if value is None or not _BEFORE.fullmatch(before) or (after and not _AFTER.fullmatch(after)):
        return None
    if _CHANGES.search(f"{before} {after}"):
        return None
    return Amount(-value if signed else value, tuple(word.removesuffix("s") for word in _WORDS.findall(after)))


def _divides(answer: str) -> bool:
    return "/" in answer or "frac" in answer


def one_unit(one: Amount, other: Amount) -> bool:
    """Whether the shorter of two units begins the longer one: "18 dollars" and "18 dollars in total", "18" and "18 dollars"."""
    return all(a == b for a, b in zip(one.unit, other.unit, strict=False))

r"""Final answers: find the one a text commits to, and decide whether two answers are the same. Pure, linear time, never raises.

Finding (`final_answer`), the first rule that applies: the last closed ``\boxed{...}``; the last closed ``<answer>...</answer>``; the line
after the last ``####`` that is no heading (GSM8K); the words after the last "answer is" / "answer:", but for one that only says "correct"
or the like of an answer that was given before; the last number of the text. A text that is the expected answer and nothing else gives it
(`agreement.gives`), whatever it would be taken for otherwise.

Comparing (`same_answer`) is strict on purpose, so that a reward cannot be had for almost nothing:
- Numbers compare exactly, as rationals: ``1,234 == 1234``, ``1/2 == 0.5 == \frac{1}{2}``, ``2.50 == 2.5``, ``1e3 == 1000``,
  ``3e8 == 3\times 10^8 == 3 x 10^8``; ``0.333 != 1/3``.
- Dropped before comparing: the outer ``$...$``, ``\(...\)``, ``\[...\]`` and ``**``, one trailing period, ``$``, ``%`` and degree signs
  (so ``50% == 50`` and ``50% != 0.5``), LaTeX spacing and ``\text{}`` wrappers, the parentheses of a lone choice letter.
- Units and words stay: ``42 apples != 42`` (but agree, see `agreement`). Everything that is not a number is text, compared without case
  and without spaces around punctuation: ``(1, 2) == (1,2)``, ``Paris == paris``, ``x = 5 != 5``.
- An answer that is empty after this equals nothing.
"""

from __future__ import annotations

import re
from fractions import Fraction

from posttrain.data.boxed import boxed
from posttrain.data.hashes import after_hashes

NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?(?:[eE][+-]?\d+)?(?:/\d+(?:\.\d+)?)?%?|\.\d+", re.ASCII)
FRACTION = re.compile(r"\\[dt]?frac\{\s{0,3}(-?\d{1,50})\s{0,3}\}\{\s{0,3}(-?\d{1,50})\s{0,3}\}|\\[dt]?frac(\d)(\d)", re.ASCII)
SCIENTIFIC = re.compile(  # 3 \times 10^{8}, 3 x 10^8, 3 \cdot 10^-8, with the exponent's digits raised, too
    r"(?<![\w.,/^}])(?<!/ )(\d{1,50}(?:,\d{3}){0,16}(?:\.\d{1,50})?|\.\d{1,50})"
    r"\s{0,3}(?:\\times|\\cdot|[*\u00d7\u00b7x])\s{0,3}10\s{0,3}"
    r"(?:\^\s{0,3}(?:\{\s{0,3}([+-]?\d{1,3})\s{0,3}\}|([+-]?\d{1,3})(?!\w|\.\d))"
    r"|([\u207a\u207b]?[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]{1,3})(?!\w))(?!\^)",
    re.ASCII,
)
_RAISED = str.maketrans("\u207a\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079", "+-0123456789")
_PHRASE = re.compile(
    r"answer(?:\*\*)? ?(?:is\b(?!n't)|:)(?:\*\*)?[ :]?(?: ?(?:therefore|thus|hence|then|simply|clearly|just)\b,? ?)?", re.IGNORECASE
)
_COMMENT = re.compile(r"(?:in)?correct\b|right\b|wrong\b|not\b", re.IGNORECASE)  # on an answer that was given before
_TAGGED = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", re.IGNORECASE | re.DOTALL)
_SENTENCE_END = re.compile(r"[.!?](?=\s)|\n")
_DECIMAL = re.compile(r"([+-]?)(\d+|\d{1,3}(?:,\d{3})+)?(?:\.(\d*))?(?:[eE]([+-]?\d{1,3}))?", re.ASCII)
_WRAPPER = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\{([^{}]*)\}")
_NOISE = re.compile(r"\\left(?![a-z])|\\right(?![a-z])|\\[!,;: ]|\^\{?\\circ\}?|\\degree|\\?[$%]|\u00b0|\*\*")
_SPACED = re.compile(r" ?([^\w\s]) ?")
_MAX_DIGITS = 200  # a longer "number" is text: int() of it would not be linear
_MINUS = {0x2212: "-", 0x2013: "-", 0x00A0: " ", 0x202F: " "}


def final_answer(text: str) -> str | None:
    """The answer that `text` commits to, as written there, or None if it names none. Rules and their order: see the module."""
    for rule in (boxed, tagged, after_hashes, _after_phrase, _last_number):
        if found := rule(text):
            return found
    return None


def same_answer(a: str, b: str) -> bool:
    """Whether two answers are the same number or the same text; symmetric. What counts as the same: see the module."""
    left, right = normalised(a), normalised(b)
    if not left or not right:
        return False
    if left == right:
        return True
    value, other = rational(left), rational(right)
    return value is not None and value == other


def tagged(text: str) -> str | None:
    """What stands between the last <answer> and </answer>; of a sentence there, what it says the answer is."""
    found = _TAGGED.findall(text)
    inside = found[-1].strip() if found else ""
    return _after_phrase(inside) or inside or None


def _after_phrase(text: str) -> str | None:
    """The rest of the sentence after the last "answer is" or "answer:", without markdown, dollars and the closing period.

    One that comments on an answer ("this answer is correct") counts only where no other was given before.
    """
    found = list(_PHRASE.finditer(text))
    limits = [match.start() for match in found[1:]] + [len(text)]
    comment = None
    for match, limit in zip(reversed(found), reversed(limits), strict=False):  # without a phrase there is one limit too many
        sentence = (
            _SENTENCE_END.split(text[match.end() : limit].lstrip(), maxsplit=1)[0].strip().strip("*").strip().removesuffix(".").strip()
        )
        if sentence and not _COMMENT.match(sentence):
            return sentence.rstrip("!") or sentence
        comment = comment or sentence
    return comment or None


def _last_number(text: str) -> str | None:
    r"""The last number as written: ``-3``, ``1,234.5``, ``1/2``, ``\frac{1}{2}``, ``3\times10^8``. A minus between two numbers subtracts,
    it is no sign."""
    text = text.translate(_MINUS)
    last: re.Match[str] | None = None
    for pattern in (NUMBER, FRACTION, SCIENTIFIC):
        for match in pattern.finditer(text):
            if last is None or match.end() >= last.end():
                last = match
    if last is None:
        return None
    start = last.start()
    signed = text[max(0, start - 1) : start] == "-" and not re.match(r"[\w)\]}]", text[max(0, start - 2) : start - 1])
    return ("-" if signed else "") + last[0]


def normalised(answer: str) -> str:
    """The answer without the decoration that never changes its meaning; text is case-folded."""
    text = answer.translate(_MINUS).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").replace("{,}", ",")
    text = _WRAPPER.sub(r"\1", text).replace("\\(", "").replace("\\)", "").replace("\\[", "").replace("\\]", "")
    text = " ".join(_NOISE.sub("", text).split())
    text = SCIENTIFIC.sub(_with_exponent, _SPACED.sub(r"\1", text).removesuffix(".").strip().casefold())
    return text[1] if re.fullmatch(r"\([a-z]\)", text) else text


def _with_exponent(match: re.Match[str]) -> str:
    r"""``3\times 10^{8}`` as ``3e8``, apart from a unit behind it."""
    exponent = match[2] or match[3] or match[4].translate(_RAISED)
    return f"{match[1]}e{exponent}" + " " * match.string[match.end() : match.end() + 1].isalpha()


def rational(text: str) -> Fraction | None:
    r"""The exact value of a decimal, ``a/b`` or ``\frac{a}{b}``; None if `text` is not a number."""
    sign = 1
    if match := re.fullmatch(r"([+-]?)\\frac(?:\{([^{}]*)\}\{([^{}]*)\}|(\d)(\d))", text):
        sign = -1 if match[1] == "-" else 1
        above, below = match[2] or match[4], match[3] or match[5]
    else:
        above, slash, below = text.partition("/")
        below = below if slash else "1"
    numerator, denominator = _decimal(above or ""), _decimal(below or "")
    return sign * numerator / denominator if numerator is not None and denominator else None


def _decimal(text: str) -> Fraction | None:
    """The exact value of a decimal number with optional sign, thousands commas and exponent; None if it is not one."""
    match = _DECIMAL.fullmatch(text) if len(text) <= _MAX_DIGITS else None
    if match is None or not (match[2] or match[3]):
        return None
    whole, fraction, exponent = (match[2] or "").replace(",", ""), match[3] or "", int(match[4] or 0)
    value = Fraction(int(whole + fraction)) * Fraction(10) ** (exponent - len(fraction))
    return -value if match[1] == "-" else value

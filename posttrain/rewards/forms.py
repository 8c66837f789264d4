r"""The form of a mathematical answer: whether its operations are carried out, and which brackets it stands in. Linear time, never raises.

An answer that repeats the question has its value and not its form: ``47+35`` for ``82``. Where the expected answer has no variable, an
answer may have the operations of the expected one and those of a number in value form: a sign, a fraction where the expected answer is not
whole, a multiple of a root or constant, scientific notation. Where it has variables, only what is to be evaluated is looked at:
derivatives, integrals, sums, limits, greatest divisors and the like.
"""

from __future__ import annotations

import re

from posttrain.rewards.agreement import divided

_PLAIN = re.compile(r"\\(?:left|right|bigl?|bigr?|,|;|!|:|quad|qquad|displaystyle)(?![a-z])|\\[!,;: $%]|\\?\$", re.IGNORECASE)
_WRAPPED = re.compile(r"\\(?:text|mathrm|mbox|textrm|textbf|mathbf|operatorname)\s?\{([^{}]*)\}")
_SCIENTIFIC = re.compile(
    r"(?:(?<=\d)\s{0,9}(?:\\cdot|\\times|\*|\u00d7|x)\s{0,9})?(?<!\d)10\s{0,9}\^\s{0,9}(?:\{\s{0,9}[+-]?\d{1,9}\s{0,9}\}|-?\d)"
)
_CONSTANT = r"\\pi|\u03c0|[ei](?![a-z])"
_COEFFICIENT = re.compile(
    rf"(?<=[\d}}])\s{{0,9}}(?:\\cdot|\\times|\*|\u00b7)\s{{0,9}}(?=\\sqrt|\u221a|{_CONSTANT})"
    rf"|(?:{_CONSTANT})\s{{0,9}}(?:\\cdot|\\times|\*|\u00b7)\s{{0,9}}(?=\d|\\sqrt|\\frac)"
)
_EVALUATED = (
    "int iint oint sum prod lim limsup liminf gcd lcm max min mod bmod pmod binom dbinom tbinom choose det perm comb floor ceil lfloor "
    "lceil round abs"
)
_FUNCTIONS = _EVALUATED + " sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp"
_DERIVATIVE = re.compile(r"\\?d?frac\s?\{\s?(?:d|\\partial)[^{}]{0,20}\}\s?\{\s?(?:d|\\partial)|\bd\s?/\s?d[a-z]")
_NAMES = re.compile(r"\\([a-zA-Z]+)|([^\W\d_]+)")
_OPERATIONS = {
    "plus": re.compile(r"\+|(?<=[\w)}\]!])\s{0,9}-"),
    "times": re.compile(r"\\cdot|\\times|\\ast|\*|\u00d7|\u00b7|\)\s{0,9}\(|\d\s{0,9}\(|\)\s{0,9}\d|\d\s{0,9}x\s{0,9}\d"),
    "roots": re.compile(r"\\sqrt\s?\{[^{}]{0,99}\}\s?(?:\\cdot|\\times|\*)?\s?\\sqrt"),
    "size": re.compile(r"\\[lr]?vert|\|"),
    "divide": re.compile(r"\\div|\u00f7"),
    "power": re.compile(r"\^(?!\s?\{?\\circ)|\\sqrt|\u221a|[\u00b2\u00b3]|\bsqrt"),
    "factorial": re.compile(r"(?<=[\w)}])\s{0,9}!"),
}
_KINDS = {"(": ")", "[": "]", "{": "}"}


def in_value_form(found: str, expected: str) -> bool:
    """Whether a found answer has no operation left to carry out that the expected one does not have. See the module."""
    found, expected = _last_side(found), _last_side(expected)
    if _operations(found, _EVALUATED) - _operations(expected, _EVALUATED):
        return False
    if _has_variables(expected):
        return True
    done = divided(found, expected) and not (_whole(expected) and re.search(r"/|frac", found))
    return done and not _operations(found) - _operations(expected)


def brackets(answer: str) -> tuple[str, ...]:
    r"""The brackets around lists in an answer, sorted: of ``(0,1]\cup\{2,3\}``, ``(]`` and ``{}``; none for a list without brackets."""
    opened: list[tuple[str, bool]] = []
    kinds = []
    text = _PLAIN.sub("", answer.replace("{,}", "").replace("\\lbrace", "\\{").replace("\\rbrace", "\\}")).replace("\\", "")
    for character in text:
        if character in _KINDS:
            opened.append((character, False))
        elif character == "," and opened:
            opened[-1] = (opened[-1][0], True)
        elif character in _KINDS.values() and opened:
            start, lists = opened.pop()
            if lists:
                kinds.append(start + character)
    return tuple(sorted(kinds))


def same_brackets(found: str, expected: str) -> bool:
    r"""Whether the lists in two answers stand in the same brackets. Values without any, ``2,3``, are the set ``\{2,3\}``."""
    kinds = {brackets(found), brackets(expected)}
    return len(kinds) == 1 or kinds == {(), ("{}",)}


def _operations(text: str, functions: str = _FUNCTIONS) -> set[str]:
    """Names of the operations in an answer; only of the functions among them, unless all are asked for."""
    named = {name for match in _NAMES.findall(text) for name in match if name in functions.split()}
    if _DERIVATIVE.search(text):
        named.add("derivative")
    rest = _COEFFICIENT.sub("", _SCIENTIFIC.sub("7", text))
    return named | ({name for name, pattern in _OPERATIONS.items() if pattern.search(rest)} if functions == _FUNCTIONS else set())


def _last_side(answer: str) -> str:
    """What stands behind the last sign of equality, without decoration."""
    text = _WRAPPED.sub(r"\1", _PLAIN.sub("", answer)).replace("\u2212", "-")
    return re.split(r"=|\\approx|\\equiv", text)[-1].strip()


def _has_variables(answer: str) -> bool:
    """Whether an answer has letters that are no constants, functions or units behind a number."""
    bare = re.sub(r"\\[a-zA-Z]+|(?<=\d)\s{0,9}[^\W\d_]{2,}[^\d\\^]*$|(?<=\d) [^\W\d_]+$", " ", answer)
    return bool(set(re.findall(r"[^\W\d_]+", bare)) - {"e", "i", "pi", *_FUNCTIONS.split()})


def _whole(answer: str) -> bool:
    return re.fullmatch(r"[+-]?\d[\d,]*(?:\.0*)?", answer) is not None

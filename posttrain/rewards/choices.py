"""Multiple choice: which option a text picks. Pure, linear time, never raises."""

from __future__ import annotations

import re
from functools import cache

from posttrain.data.boxed import boxed
from posttrain.rewards.answers import normalised, tagged

# English "answer is", "correct option is", "I choose"; Vietnamese "chon" (choose) and "dap an (dung) la" (the (right) answer is)
_PICKS = (
    r"(?:answer|(?:correct|right|best) (?:option|choice|one)|ch\u1ecdn|\u0111\u00e1p \u00e1n(?: \u0111\u00fang)?"
    r"|\bI(?:'d| would| will|'ll)? (?:choose|pick|select|go with|say))"
)
_LINK = r"(?:\*\*)?(?: is| l\u00e0)?:?(?:\*\*)?\s{0,4}"
_OPEN = r"(?:\*\*|\$|\\\(|\\(?:text|textbf|mathbf|mathrm)\{|[(*]){0,3}"
_CLOSE = r"(?:\*\*|\$|\\\)|[)}*]){0,3}"


def choice_letter(text: str, letters: str = "ABCDE") -> str | None:
    r"""The option of a multiple-choice question that `text` picks, upper case, or None if it picks none or is unclear.

    The first that applies: the last ``\boxed{B}``, ``<answer>B</answer>``, ``<answer>B. Paris</answer>``; the last "answer is (B)",
    "Answer: B", "The correct option is B", "I choose B", Vietnamese "dap an: B"; the only letter of which the text says that it is right;
    a text that starts with the letter alone ("B", "B.", "(B) because"), unless further lines start with others, or the line goes on with
    the others in order, as a list of the options does; the only letter in parentheses that is not called wrong. Where several are named
    together ("A, B", "A or B") it is unclear. A capital inside a sentence ("A dog ...") is no choice, nor is a small letter with a word
    behind it ("the answer is a bit ...").
    """
    rules = _rules(letters.upper())
    marked = normalised(boxed(text) or tagged(text) or "")
    if (match := rules["marked"].match(marked)) or rules["several"].fullmatch(marked):
        return match["letter"].upper() if match else None
    if matches := list(rules["picked"].finditer(text)):
        return _alone(matches[-1], rules["more"])
    if right := {letter.upper() for letter in rules["right"].findall(text)}:
        return right.pop() if len(right) == 1 else None
    if _lists_options(list(rules["option"].finditer(text)), letters.upper()):
        return None
    wrong, listed = (set(map(str.upper, rules[name].findall(text))) for name in ("wrong", "listed"))
    if len(listed) < 2 and (match := rules["first"].match(text.lstrip())) and match["letter"].upper() not in wrong:
        return _alone(match, rules["more"])
    bracketed = set(map(str.upper, rules["bracketed"].findall(text))) - wrong
    return bracketed.pop() if len(bracketed) == 1 else None


def _lists_options(marks: list[re.Match[str]], letters: str) -> bool:
    """Whether a text begins with all options on one line: marks of one style, in order; two of them where the first option ends in a comma,
    a semicolon or a number, as no sentence does that goes on with the name of another option."""
    alike = [mark for mark in marks if mark.group("open", "close") == marks[0].group("open", "close")]
    named = "".join(mark["letter"].upper() for mark in alike)
    if len(named) < 2 or not letters.startswith(named) or alike[0].string[: alike[0].start()].strip():
        return False
    return len(named) > 2 or re.search(r"[,;\d]\s*$", alike[0].string[alike[0].end() : alike[1].start()]) is not None


def _alone(match: re.Match[str], more: re.Pattern[str]) -> str | None:
    """The letter that was matched, upper case; None where others are named beside it."""
    return None if more.match(match.string, match.end("letter")) else match["letter"].upper()


@cache
def _rules(letters: str) -> dict[str, re.Pattern[str]]:
    """What `choice_letter` looks for, by name."""
    either = f"[{letters}{letters.lower()}]"
    small = rf"[{letters.lower()}](?={_CLOSE}(?:[),:;*]|\.(?!\w)|\s*$|\s*\n))"
    wrong = rf"{_CLOSE} is (?:wrong|false|incorrect|not|too)\b"
    patterns = {
        "marked": rf"(?:option |choice )?\(?(?P<letter>{either})(?:[.)]?$|[.):]+\s?\w)",
        "several": rf"\(?{either}\)?(?:(?:[,/&]|,?(?:and|or)\b| |\(|\))+{either}\)?)+",
        "picked": rf"(?i:{_PICKS}{_LINK}(?:option |choice )?){_OPEN}(?P<letter>[{letters}](?!')|{small})(?!\w)(?!{wrong})",
        "more": rf"{_CLOSE}(?:\s?[,/&]\s?(?:and |or )?|\s(?:and|or)\s){_OPEN}[{letters}](?![\w'])(?!{wrong})",
        "right": rf"(?<![\w']){_OPEN}([{letters}]){_CLOSE} (?:is|must be) (?:the )?(?:correct|right|true|best)\b",
        "wrong": rf"(?<![\w']){_OPEN}([{letters}]){wrong}",
        "listed": rf"(?m:^)[ \t]{{0,4}}[(*]{{0,3}}({either})[.):*]",
        "option": rf"(?<![\w'])(?P<open>\(?)(?P<letter>{either})(?P<close>[.):])(?!\w)",
        "first": rf"[(*]{{0,3}}(?P<letter>{either})(?:[.):*]|\s*$)",
        "bracketed": rf"\(({either})\)",
    }
    return {name: re.compile(pattern) for name, pattern in patterns.items()}

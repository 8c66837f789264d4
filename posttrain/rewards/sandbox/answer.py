"""The program in a model's answer."""

from __future__ import annotations

import re
from collections.abc import Collection

_OPENING = re.compile(r"[ \t]{0,12}(`{3,}|~{3,})[ \t]*([\w+.-]*)[^`]*", re.ASCII)
_PYTHON = ("python", "python3", "py", "")


def program_of(answer: str, names: Collection[str] = ()) -> str:
    """The code of an answer: of its fenced Python blocks the last that defines one of `names`, else the last; without any block the whole
    answer. A block that is cut off ends with the answer.
    """
    blocks = [block for language, block in fenced(answer) if language in _PYTHON]
    if not blocks:
        return answer
    defining = [block for block in blocks if any(defines(block, name) for name in names)]
    return (defining or blocks)[-1]


def fenced(text: str) -> list[tuple[str, str]]:
    """The fenced blocks of a Markdown text: language in lower case, content. One pass over the lines."""
    found: list[tuple[str, list[str]]] = []
    fence = ""
    for line in text.splitlines(keepends=True):
        if fence:
            closing = line.strip()
            if len(closing) >= len(fence) and closing == fence[0] * len(closing):
                fence = ""
            else:
                found[-1][1].append(line)
        elif (match := _OPENING.fullmatch(line.rstrip("\r\n"))) is not None:
            fence = match[1]
            found.append((match[2].lower(), []))
    return [(language, "".join(lines)) for language, lines in found]


def defines(code: str, name: str) -> bool:
    """Whether the code has a function, class or assignment of that name at its top level."""
    return re.search(rf"^(?:(?:async[ \t]+)?def|class)[ \t]+{re.escape(name)}\b|^{re.escape(name)}[ \t]*=", code, re.MULTILINE) is not None

"""The program in a model's answer."""

from __future__ import annotations

import re
from collections.abc import Collection

_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*([\w+.-]*)[^\n]*\n(.*?)(?:^[ \t]*\1[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
_PYTHON = ("python", "python3", "py", "")


def program_of(answer: str, names: Collection[str] = ()) -> str:
    """The code of an answer: of its fenced Python blocks the last that defines one of `names`, else the last; without any block the whole
    answer. A block that is cut off ends with the answer.
    """
    blocks = [match[3] for match in _FENCE.finditer(answer) if match[2].lower() in _PYTHON]
    if not blocks:
        return answer
    defining = [block for block in blocks if any(defines(block, name) for name in names)]
    return (defining or blocks)[-1]


def defines(code: str, name: str) -> bool:
    """Whether the code has a function, class or assignment of that name at its top level."""
    return re.search(rf"^(?:(?:async[ \t]+)?def|class)[ \t]+{re.escape(name)}\b|^{re.escape(name)}[ \t]*=", code, re.MULTILINE) is not None

r"""LaTeX's ``\boxed{...}``, in which an answer stands: one definition for the answers that data expect and those that a model gives."""

from __future__ import annotations

import re

_TOKEN = re.compile(r"\\(?:boxed|fbox) ?\{|\\boxed ([^\s${}]{1,80})|\\.|[{}]", re.DOTALL)


def boxed(text: str) -> str | None:
    r"""Content of the last ``\boxed{...}`` that is closed, nested braces included; also ``\boxed {5}``, ``\fbox{5}`` and ``\boxed 5``.
    None if there is none. Linear in the length of the text."""
    last, found = -1, ""
    opened: list[tuple[int, bool]] = []
    for match in _TOKEN.finditer(text):
        token = match[0]
        if match[1] is not None and match.start() > last:
            last, found = match.start(), match[1]
        elif token[-1] == "{" and len(token) != 2:
            opened.append((match.end(), len(token) > 1))
        elif token == "}" and opened:
            start, is_box = opened.pop()
            if is_box and start > last:
                last, found = start, text[start : match.start()].strip()
    return found or None

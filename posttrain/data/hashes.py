"""GSM8K's ``####``, behind which an answer stands: one definition for the answers that data expect and those that a model gives."""

from __future__ import annotations

import re

_SPACE = re.compile(r"\s*")
_HASHES = re.compile("#{4,}")
_WORD = re.compile(r"(?<![\\\w])[^\W\d_]{2,}")  # no command of LaTeX
_AMOUNT = re.compile(r"[-$\u20ac\u00a3]{0,2}\d[\d,./]*(?: [^\W\d_]+){1,3}[.!]?")  # "72 clips"; a step's "1. Add" has a mark behind it


def after_hashes(text: str) -> str | None:
    """The rest of the line after the last ``####`` that is no heading of Markdown; None if there is none, or nothing behind it.

    A heading stands at the start of a line, has words (but for those behind a number, as in "72 clips"), and text below it.
    """
    ends = len(text.rstrip())
    for mark in reversed(list(_HASHES.finditer(text))):
        start = _SPACE.match(text, mark.end()).end()  # type: ignore[union-attr]  # matches everywhere
        end = text.find("\n", start) % (len(text) + 1)  # -1, no further line, becomes the end of the text
        said = text[start:end].strip()
        if not said:
            break
        begun = text[text.rfind("\n", 0, mark.start()) + 1 : mark.start()].strip()
        if begun or end >= ends or not _WORD.search(said) or _AMOUNT.fullmatch(said):
            return said
    return None

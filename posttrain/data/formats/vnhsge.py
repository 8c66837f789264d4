"""VNHSGE: Vietnamese school exams, multiple choice and literature, in both spellings of the fields that exist."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from posttrain.data.formats.fields import conversation, filled, text_of, turn
from posttrain.data.formats.registry import Filtered, RowError, register
from posttrain.types import Example

_QUESTION = "C\u00e2u h\u1ecfi"
_ANSWER = "\u0110\u00e1p \u00e1n"
_HINTS = ("G\u1ee3i \u00fd tr\u1ea3 l\u1eddi", "G\u1ecdi \u00fd tr\u1ea3 l\u1eddi")


@register("vnhsge", needs=[["Question", "Choice"], ["Q", "C"]])
def convert(row: Mapping[str, Any], *, images: bool = False, explain: bool = True) -> Example | Filtered:
    """{"ID", "Question" or "Q", "Choice" or "C", "Image_Question" or "IQ", "Explanation" or "E"}.

    images: keep questions that show an image, which a text model cannot see. explain: the explanation precedes the choice in the answer.
    """
    if _either(row, "Image_Question", "IQ").strip() and not images:
        return Filtered("image")
    question = filled(row, "Question" if row.get("Question") is not None else "Q")
    choice = _either(row, "Choice", "C").strip().upper()
    if not re.fullmatch("[A-E]", choice):
        raise RowError(f"Choice must be a letter from A to E, got {choice!r}")
    reason = _either(row, "Explanation", "E").strip() if explain else ""
    answer = (f"{reason}\n\n" if reason else "") + f"Final Answer: {choice}"
    parts = text_of(row, "ID", "").split("_")
    return conversation(turn(question, answer), answer=choice, meta={"id": row.get("ID"), "subject": parts[1] if len(parts) > 1 else ""})


@register("vnhsge_literature", needs=[[_QUESTION, _ANSWER], *([_QUESTION, hint] for hint in _HINTS)])
def convert_literature(row: Mapping[str, Any]) -> Example:
    """Open questions: the model answer where there is one, else the hints."""
    hints = next((text for hint in _HINTS if (text := text_of(row, hint, "").strip())), "")
    answer = text_of(row, _ANSWER, "").strip() or hints
    if not answer:
        raise RowError("has neither an answer nor hints")
    return conversation(turn(filled(row, _QUESTION), answer), meta={"subject": "literature", "hints": hints})


def _either(row: Mapping[str, Any], *names: str) -> str:
    """The first of these fields that is not null, else empty."""
    return next((text_of(row, name) for name in names if row.get(name) is not None), "")

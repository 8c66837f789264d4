"""Multiple-choice questions out of the rows of VNHSGE, ViLLM, ARC and MMLU-like files. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_INLINE = re.compile(r"(?:^|\n)[ \t]*([A-H])[ \t]*[.:)]", re.ASCII)
_LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Question:
    """text: the question with its options written out. labels, options: equally long; options are empty texts where they are inline.

    answer: index of the right option. subject: for the breakdown, or empty.
    """

    text: str
    labels: tuple[str, ...]
    options: tuple[str, ...]
    answer: int
    subject: str = ""


def parse(row: Mapping[str, Any]) -> Question | str:
    """The question in a row, or the reason why there is none."""
    if "Question" in row or "Q" in row:
        return _vnhsge(row)
    if "question" in row and "choices" in row:
        choices = row["choices"]
        return _labelled(row, choices) if isinstance(choices, Mapping) else _listed(row, choices)
    return "expected the fields of VNHSGE (Question, Choice), ViLLM/ARC (question, choices, answerKey) or MMLU (question, choices, answer)"


def _vnhsge(row: Mapping[str, Any]) -> Question | str:
    """VNHSGE: options inside the question's text, the answer's letter in `Choice`; its README names the fields Q, C, IQ."""
    text = str(row.get("Question") or row.get("Q") or "").strip()
    if row.get("Image_Question") or row.get("IQ"):
        return "the question needs an image"
    labels = tuple(dict.fromkeys(_INLINE.findall(text)))
    answer = str(row.get("Choice") or row.get("C") or "").strip().rstrip(".").upper()
    if len(labels) < 2:
        return "no options found in the question"
    if answer not in labels:
        return f"the answer {answer!r} is none of the options {', '.join(labels)}"
    parts = str(row.get("ID", "")).split("_")
    return Question(text, labels, ("",) * len(labels), labels.index(answer), parts[1] if len(parts) > 2 else "")


def _labelled(row: Mapping[str, Any], choices: Mapping[str, Any]) -> Question | str:
    """ViLLM and ARC: choices as parallel lists of texts and labels, the answer's label in `answerKey`."""
    labels = [str(label) for label in choices.get("labels") or choices.get("label") or []]
    return _question(row, labels, choices.get("text") or [], str(row.get("answerKey", "")).strip())


def _listed(row: Mapping[str, Any], choices: Any) -> Question | str:
    """MMLU: choices as a list, the answer as its index or letter."""
    if not isinstance(choices, Sequence) or isinstance(choices, str):
        return "choices is no list"
    answer = row.get("answer")
    labels = list(_LETTERS[: len(choices)])
    label = labels[answer] if isinstance(answer, int) and 0 <= answer < len(labels) else str(answer).strip()
    return _question(row, labels, choices, label)


def _question(row: Mapping[str, Any], labels: Sequence[str], options: Sequence[Any], answer: str) -> Question | str:
    if len(labels) < 2 or len(labels) != len(options) or len(set(labels)) != len(labels):
        return f"{len(options)} options with {len(labels)} labels"
    if answer not in labels:
        return f"the answer {answer!r} is none of the options {', '.join(labels)}"
    texts = tuple(str(option).strip() for option in options)
    if not all(texts):
        return "an option is empty"
    lines = [str(row["question"]).strip(), *(f"{label}. {option}" for label, option in zip(labels, texts, strict=True))]
    return Question("\n".join(lines), tuple(labels), texts, list(labels).index(answer), str(row.get("subject") or ""))

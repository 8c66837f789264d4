"""Worked answers with a label for each step: TRL's layout of PRM800K and its like, and Math-Shepherd's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from posttrain.data.formats.fields import Message, filled, list_of
from posttrain.data.formats.preferences import prompt_of
from posttrain.data.formats.registry import Fields, RowError, register
from posttrain.types import Example, Step

MARK = "ки"  # what Math-Shepherd puts where a step is judged
SIGNS = {"+": 1.0, "-": 0.0}
FIRST = "Step 1:"
Neutral = Literal["right", "wrong", "unknown"]
NEUTRAL: dict[str, float | None] = {"right": 1.0, "wrong": 0.0, "unknown": None}


@register("stepwise", needs=[["prompt", "completions", "labels"], ["question", "completions", "labels"]], kind="steps")
def convert(
    row: Mapping[str, Any], *, separator: str = "\n", labels: Literal["binary", "ternary"] = "binary", neutral: Neutral = "right"
) -> Example:
    """{"prompt", "completions": [steps], "labels": [true, false, ...]}; null is an unknown label.

    separator: put between the steps. labels: binary is false / true or 0 / 1; ternary is -1 / 0 / 1. neutral: what a ternary 0 counts as
    (PRM800K, arXiv:2305.20050, counts it as right).
    """
    texts, found = list_of(row, "completions"), list_of(row, "labels")
    if len(texts) != len(found):
        raise RowError(f"{len(texts)} completions but {len(found)} labels")
    known = [_label(label, place, labels, neutral) for place, label in enumerate(found, 1)]
    return _example(_prompt(row), texts, known, separator)


def _label(value: Any, place: int, labels: str, neutral: Neutral) -> float | None:
    if value is None:
        return None
    if labels == "binary" and value in (0, 1):
        return float(value)
    if labels == "ternary" and not isinstance(value, bool) and value in (-1, 0, 1):
        return NEUTRAL[neutral] if value == 0 else float(value > 0)
    hint = "; set data.format_options.labels=ternary" if labels == "binary" and value == -1 else ""
    raise RowError(f"label {place} is {value!r}, expected {'true or false' if labels == 'binary' else '-1, 0 or 1'}{hint}")


def _prompt(row: Mapping[str, Any]) -> list[Message]:
    return prompt_of(row)


def _is_shepherd(row: Fields) -> bool:
    return all(isinstance(row[key], str) for key in ("input", "label")) and MARK in row["input"] and FIRST in row["input"]


@register("math_shepherd", needs=[["input", "label"]], kind="steps", accepts=_is_shepherd)
def convert_shepherd(row: Mapping[str, Any], *, separator: str = "\n") -> Example:
    """Math-Shepherd: {"input", "label"}, the question and its steps as one text; `label` has + or - where `input` has its mark."""
    text, label = filled(row, "input"), filled(row, "label")
    pieces = text.split(MARK)
    labels = list(_signs(pieces, label))
    start = pieces[0].find(FIRST)
    if start < 0:
        raise RowError(f"the first judged step does not begin with {FIRST!r}")
    steps = [pieces[0][start:], *pieces[1:-1]] if len(pieces) > 1 else []
    if pieces[-1].strip():
        raise RowError("the text goes on behind its last judged step")
    return _example([{"role": "user", "content": text[:start].strip()}], [step.strip() for step in steps], labels, separator)


def _signs(pieces: Sequence[str], label: str) -> Iterator[float]:
    """The labels at the places of the marks. Raises RowError where the two texts differ elsewhere."""
    place = 0
    for piece in pieces[:-1]:
        place += len(piece)
        sign = label[place : place + 1]
        if label[place - len(piece) : place] != piece or sign not in SIGNS:
            raise RowError("label is not the input with + or - where a step is judged")
        yield SIGNS[sign]
        place += 1


def _example(asked: Sequence[Message], texts: Sequence[Any], labels: Sequence[float | None], separator: str) -> Example:
    """An Example of a prompt and a worked answer, checked: steps with text, one label at least, none hidden in another."""
    if not texts:
        raise RowError("has no steps")
    for place, text in enumerate(texts, 1):
        if not isinstance(text, str) or not text.strip():
            raise RowError(f"step {place} is empty" if isinstance(text, str) or text is None else f"step {place} must be a string")
    if all(label is None for label in labels):
        raise RowError("has no labelled step")
    if not asked or asked[-1]["role"] == "assistant":
        raise RowError("the prompt must end in a question")
    content, ends = joined(texts, separator)
    steps = tuple(Step(end, label) for end, label in zip(ends, labels, strict=True))
    return Example(messages=(*asked, {"role": "assistant", "content": content}), steps=steps)


def joined(texts: Sequence[str], separator: str) -> tuple[str, list[int]]:
    """The steps as one text, and where each ends in it, white space at its end left out."""
    content, ends = "", []
    for text in texts:
        content += (separator if content else "") + text
        ends.append(len(content.rstrip()))
    return content, ends

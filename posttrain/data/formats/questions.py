r"""Questions with a checkable answer: GSM8K (after ``####``), MATH (in ``\boxed{}``), DeepMath (its own field)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from posttrain.data.formats.fields import conversation, filled, text_of, turn
from posttrain.data.formats.registry import RowError, register
from posttrain.types import Example


@register("question_answer", needs=[["question", "answer"]], absent=["choices"])
def convert(row: Mapping[str, Any]) -> Example:
    r"""{"question", "answer"}; the final answer is what follows the last ``####``, else the last ``\boxed{}``, else there is none."""
    answer = filled(row, "answer")
    return conversation(turn(filled(row, "question"), answer), answer=final_answer(answer))


@register("math", needs=[["problem", "solution"]], absent=["lang"])
def convert_math(row: Mapping[str, Any]) -> Example:
    """{"problem", "solution", "level", "type"}: MATH."""
    solution = filled(row, "solution")
    meta = {key: row[key] for key in ("level", "type") if row.get(key) is not None}
    return conversation(turn(filled(row, "problem"), solution), answer=final_answer(solution), meta=meta)


@register("deepmath", needs=[["question", "final_answer"]])
def convert_deepmath(row: Mapping[str, Any], *, solution: Literal[1, 2, 3] = 1, reasoning: bool = True) -> Example:
    r"""{"question", "final_answer", "r1_solution_1..3"}: DeepMath-103K.

    solution: which of the three is learnt; without one the answer alone is. reasoning: what stands before ``</think>`` becomes reasoning.
    """
    answer = str(row["final_answer"])
    text = text_of(row, f"r1_solution_{solution}", "")
    thought, mark, said = text.partition("</think>")
    messages = turn(filled(row, "question"), (said if mark else text).strip() or f"\\boxed{{{answer}}}")
    if mark and reasoning:
        messages[-1]["reasoning_content"] = thought.removeprefix("<think>").strip()
    meta = {key: row[key] for key in ("difficulty", "topic") if row.get(key) is not None}
    return conversation(messages, answer=answer, meta=meta)


def final_answer(text: str) -> str | None:
    r"""What follows the last ``####`` on its line, else the content of the last ``\boxed{}``."""
    _, mark, tail = text.rpartition("####")
    if mark and tail.strip():
        return tail.strip().splitlines()[0].strip()
    return boxed(text)


def boxed(text: str) -> str | None:
    r"""Content of the last ``\boxed{...}``, nested braces included; None if there is none. Raises RowError if it is never closed."""
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start < 0:
        return None
    place = begin = text.index("{", start) + 1
    depth = 1
    while depth and place < len(text):
        escaped = text[place] == "\\"
        depth += 0 if escaped else (text[place] == "{") - (text[place] == "}")
        place += 2 if escaped else 1
    if depth:
        raise RowError("\\boxed{ is never closed")
    return text[begin : place - 1].strip()

r"""Questions with a checkable answer: GSM8K (after ``####``), MATH (in ``\boxed{}``), DeepMath (its own field)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any, Literal

from posttrain.data.boxed import boxed
from posttrain.data.formats.fields import conversation, filled, meta_of, text_of, turn
from posttrain.data.formats.messages import below_system, tools_of
from posttrain.data.formats.registry import RowError, register
from posttrain.data.hashes import after_hashes
from posttrain.types import Example

OWN = ("question", "answer", "context", "options")


@register("question_answer", needs=[["question", "answer"]], absent=["choices"])
def convert(row: Mapping[str, Any]) -> Example:
    r"""{"question", "answer", "context", "options"}; the final answer follows the last ``####``, or is in the last ``\boxed{}``.

    context: a text that stands in front of the question, after which comes a blank line. options: a list of texts, or an object of them by
    letter; they stand below the question, a line each, as "A. text". Further fields, or those in `meta`, reach rewards.
    """
    answer = filled(row, "answer")
    context = text_of(row, "context", "").strip()
    asked = (f"{context}\n\n" if context else "") + "\n".join([filled(row, "question"), *_options(row.get("options"))])
    messages = below_system(turn(asked, answer), row)
    return conversation(messages, answer=final_answer(answer), tools=tuple(tools_of(row.get("tools"))), meta=meta_of(row, OWN))


def _options(options: Any) -> list[str]:
    """The options of a question, each behind its letter. Raises RowError for what is no list or object of texts."""
    if options in (None, "", [], {}):
        return []
    if isinstance(options, (list, tuple)) and len(options) <= len(ascii_uppercase):
        options = dict(zip(ascii_uppercase, options, strict=False))
    if not isinstance(options, Mapping) or not all(isinstance(text, str) and text.strip() for text in options.values()):
        raise RowError(f"field 'options' must be a list of up to {len(ascii_uppercase)} texts, or an object of texts by letter")
    lettered = all(re.match(rf"\(?{re.escape(letter)}[).:]", text) for letter, text in options.items())
    return [text if lettered else f"{letter}. {text}" for letter, text in options.items()]


@register("math", needs=[["problem", "solution"]], absent=["lang"])
def convert_math(row: Mapping[str, Any]) -> Example:
    """{"problem", "solution", "level", "type"}: MATH. Fields besides problem and solution reach rewards."""
    solution = filled(row, "solution")
    return conversation(turn(filled(row, "problem"), solution), answer=final_answer(solution), meta=meta_of(row, ("problem", "solution")))


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
    r"""What follows the last ``####`` that is no heading of Markdown, on its line; else the content of the last ``\boxed{}``."""
    return after_hashes(text) or boxed(text)

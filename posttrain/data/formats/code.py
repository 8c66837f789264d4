"""Code tasks: MBPP (full and sanitized), HumanEval, Magicoder OSS, CoNaLa (curated and mined)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from posttrain.data.formats.fields import conversation, filled, list_of, text_of, turn
from posttrain.data.formats.registry import Filtered, RowError, register
from posttrain.types import Example


@register("mbpp", needs=[["text", "code", "test_list"], ["prompt", "code", "test_list"]])
def convert_mbpp(row: Mapping[str, Any], *, show_tests: bool | Literal["first"] = True) -> Example:
    """MBPP, full (`text`) and sanitized (`prompt`). `reward=code` pays for its `test_list`, and its `challenge_test_list` where asked.

    show_tests: true, the prompt ends with the tests, as in the paper (Austin et al., 2021): all that are rewarded, unless challenge tests
    are; a program may answer them by heart. first: with the first alone, which tells the function's name and what it takes. false: none.
    """
    tests = [str(test) for test in list_of(row, "test_list")]
    prompt = filled(row, "text" if row.get("text") is not None else "prompt").strip()
    shown = tests[:1] if show_tests == "first" else tests if show_tests else []
    if shown:
        prompt += f"\n\nYour code should pass {'these tests' if len(shown) > 1 else 'this test'}:\n" + "\n".join(shown)
    setup = "\n".join([*map(str, list_of(row, "test_imports")), text_of(row, "test_setup_code", "")]).strip()
    meta = {"task_id": row.get("task_id"), "tests": tests, "setup": setup, "challenge_tests": list(list_of(row, "challenge_test_list"))}
    return conversation(turn(prompt, python_block(filled(row, "code"))), meta=meta | {"language": "python"})


@register("humaneval", needs=[["prompt", "canonical_solution", "test", "entry_point"]])
def convert_humaneval(row: Mapping[str, Any]) -> Example:
    """HumanEval: complete a function (Chen et al., 2021); the answer holds the whole function."""
    prompt = filled(row, "prompt")
    meta = {key: row.get(key) for key in ("task_id", "test", "entry_point", "prompt")} | {"language": "python"}
    asked = f"Complete this function.\n\n{python_block(prompt)}"
    return conversation(turn(asked, python_block(prompt + filled(row, "canonical_solution"))), meta=meta)


@register("magicoder_oss", needs=[["problem", "solution", "lang"]])
def convert_oss(row: Mapping[str, Any], *, languages: list[str] | None = None) -> Example | Filtered:
    """{"lang", "problem", "solution", "seed", ...}: Magicoder OSS-Instruct. languages: keep only these."""
    language = filled(row, "lang").lower()
    if languages is not None and language not in {name.lower() for name in languages}:
        return Filtered("language")
    return conversation(turn(filled(row, "problem"), filled(row, "solution")), meta={"language": language})


@register("conala", needs=[["intent", "snippet"], ["rewritten_intent", "snippet"]])
def convert_conala(row: Mapping[str, Any], *, min_prob: float = 0.0) -> Example | Filtered:
    """CoNaLa, curated (the rewritten intent where there is one) and mined. min_prob: least probability of a mined row."""
    prob = row.get("prob")
    try:
        likely = prob is None or float(prob) >= min_prob
    except (TypeError, ValueError, OverflowError) as error:
        raise RowError(f"field 'prob' must be a number, got {prob!r}") from error
    if not likely:
        return Filtered("probability")
    intent = text_of(row, "rewritten_intent", "").strip() or filled(row, "intent")
    meta = {"question_id": row.get("question_id"), "language": "python"}
    return conversation(turn(intent, filled(row, "snippet")), meta=meta)


def python_block(code: str) -> str:
    """Code in a fenced block."""
    return f"```python\n{code.rstrip()}\n```"

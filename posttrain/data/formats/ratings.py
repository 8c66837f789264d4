"""Answers with ratings: a score, ratings of qualities, HelpSteer's, UltraFeedback's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.data.formats.fields import Message, filled, list_of
from posttrain.data.formats.preferences import PROMPTS, number_of, prompt_of
from posttrain.data.formats.registry import RowError, register
from posttrain.types import Answer, Example

RESPONSES = ("response", "completion", "answer")
HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
MOST = 4.0  # of HelpSteer's ratings, which begin at 0


@register(
    "rated",
    needs=[
        [prompt, answer, *more]
        for prompt in PROMPTS
        for answer in RESPONSES
        for more in (["score"], ["attributes"], ["score", "attributes"])
    ],
    kind="rated",
)
def convert(row: Mapping[str, Any], *, lowest: float = 0.0, highest: float = 1.0) -> Example:
    """{"prompt", "response", "score", "attributes": {"readability": 0.8, ...}}: an answer with a score, ratings of its qualities, or both.

    A score is taken as it is. lowest, highest: the scale of the attributes' ratings, which become 0 to 1.
    """
    if not lowest < highest:
        raise RowError(f"format_options: lowest={lowest} must lie below highest={highest}")
    rated = {} if row.get("attributes") is None else row["attributes"]
    if not isinstance(rated, Mapping):
        raise RowError(f"field 'attributes' must be an object of ratings, got {type(rated).__name__}")
    attributes = {}
    for name in rated:
        rating = number_of(rated, name)
        if rating is not None and not lowest <= rating <= highest:
            raise RowError(f"the rating of {name} is {rating:g}, outside {lowest:g} to {highest:g}; set data.format_options.highest")
        if rating is not None:
            attributes[name] = (rating - lowest) / (highest - lowest)
    return _example(row, Answer(_response(row), number_of(row, "score"), attributes))


@register("helpsteer", needs=[["prompt", "response", *HELPSTEER]], kind="rated")
def convert_helpsteer(row: Mapping[str, Any]) -> Example:
    """HelpSteer: {"prompt", "response"} and five ratings from 0 to 4; the score is helpfulness."""
    ratings = {name: number_of(row, name) for name in HELPSTEER}
    known = {name: rating / MOST for name, rating in ratings.items() if rating is not None}
    if any(not 0 <= rating <= 1 for rating in known.values()):
        raise RowError(f"ratings must lie between 0 and {MOST:g}")
    return _example(row, Answer(_response(row), ratings["helpfulness"], known))


@register("ultrafeedback", needs=[["instruction", "completions"]], kind="rated", accepts=lambda row: _is_judged(row["completions"]))
def convert_judged(row: Mapping[str, Any], *, score: str = "fine-grained_score") -> Example:
    """UltraFeedback's raw rows: {"instruction", "completions": [{"response", "annotations": {"helpfulness": {"Rating": "4"}, ...}}]}.

    score: the field of a completion that is its score (fine-grained_score or overall_score). Its annotations' ratings, from 1 to 5, are
    those of the attributes they are named after; "N/A" is unknown.
    """
    answers = []
    for completion in list_of(row, "completions"):
        if not isinstance(completion, Mapping):
            raise RowError("completions must be a list of objects")
        notes = completion.get("annotations") or {}
        if not isinstance(notes, Mapping):
            raise RowError("annotations must be an object of ratings")
        judged = {name: number_of(note, "Rating") for name, note in notes.items() if isinstance(note, Mapping)}
        attributes = {name: (rating - 1) / 4 for name, rating in judged.items() if rating is not None and 1 <= rating <= 5}
        answers.append(Answer(_response(completion), number_of(completion, score), attributes))
    return Example(messages=({"role": "user", "content": filled(row, "instruction")},), answers=tuple(answers))


def _is_judged(completions: Any) -> bool:
    return (
        isinstance(completions, (list, tuple))
        and bool(completions)
        and isinstance(completions[0], Mapping)
        and "response" in completions[0]
    )


def _example(row: Mapping[str, Any], answer: Answer) -> Example:
    asked = prompt_of(row)
    if asked[-1]["role"] == "assistant":
        raise RowError("the prompt must end in a turn that is not the assistant's")
    return Example(messages=tuple(asked), answers=(answer,))


def _response(row: Mapping[str, Any]) -> tuple[Message, ...]:
    key = next((name for name in RESPONSES if row.get(name) is not None), RESPONSES[0])
    return ({"role": "assistant", "content": filled(row, key)},)

"""Pairs of answers, one preferred to the other: HH-RLHF, UltraFeedback, CodeUltraFeedback, and rows with chosen and rejected."""

from __future__ import annotations

import math
import os.path
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from posttrain.data.formats.fields import Message, filled, list_of, says_something, text_of
from posttrain.data.formats.messages import below_system, message_of, tools_of
from posttrain.data.formats.registry import Fields, Filtered, RowError, register
from posttrain.types import Answer, Example

PROMPTS = ("prompt", "instruction", "question", "query")
SCORES = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"), ("chosen_rating", "rejected_rating"))
TURN = re.compile(r"\n\n(Human|Assistant):")
SPEAKERS = {"Human": "user", "Assistant": "assistant"}
LAST_TURN = "\n\nAssistant:"
OPEN_TRANSCRIPT = re.compile(r"\s*(Human|Assistant):.*\n\nAssistant:\s*", re.DOTALL)
# What CodeUltraFeedback's judges were asked about; its "complexity" is how little time the code takes.
QUALITIES = {"complexity": "efficiency", "instruction-following": "instruction_following"}
LEAST, MOST = 1.0, 5.0  # of its ratings
UNKNOWN = ("", "N/A", "NA", "NONE", "NAN", "NULL")
LARGEST = 3.4e38


def _is_transcript(row: Fields) -> bool:
    return all(isinstance(row[key], str) and LAST_TURN in row[key] for key in ("chosen", "rejected"))


def _is_pair(row: Fields) -> bool:
    return all(isinstance(row[key], (str, list, tuple)) for key in ("chosen", "rejected")) and not (
        _is_transcript(row) and not any(key in row for key in PROMPTS)
    )


@register("hh", needs=[["chosen", "rejected"]], kind="preference", absent=PROMPTS, accepts=_is_transcript)
def convert_transcripts(row: Mapping[str, Any]) -> Example:
    """{"chosen", "rejected"}: transcripts of Human and Assistant turns that differ in the last Assistant turn alone."""
    asked, answers = _transcripts(row)
    return _pair(asked, [tuple(answer) for answer in answers], row)


def _transcripts(row: Mapping[str, Any]) -> tuple[list[Message], list[list[Message]]]:
    """The turns that both transcripts of a row begin with, and the answer of each."""
    asked, answers = [], []
    for key in ("chosen", "rejected"):
        before, _, answer = filled(row, key).rpartition(LAST_TURN)
        if TURN.search(answer):
            raise RowError(f"the {key} transcript does not end in an Assistant turn")
        asked.append(before)
        answers.append([{"role": "assistant", "content": answer.strip()}])
    if asked[0].strip() != asked[1].strip():
        raise RowError("chosen and rejected answer different prompts")
    return _turns(asked[0]), answers


def _turns(transcript: str) -> list[Message]:
    head, *rest = TURN.split("\n\n" + transcript.lstrip())
    if head.strip() or not rest:
        raise RowError("a transcript must begin with a Human turn" if rest else "a transcript has no turn before the answer")
    return [{"role": SPEAKERS[speaker], "content": text.strip()} for speaker, text in zip(rest[::2], rest[1::2], strict=True)]


@register("preference", needs=[["chosen", "rejected"], *([p, "chosen", "rejected"] for p in PROMPTS)], kind="preference", accepts=_is_pair)
def convert(row: Mapping[str, Any]) -> Example:
    """{"prompt", "chosen", "rejected"}, each a text or a list of messages; lists may hold the prompt, and then need no `prompt` field.

    Texts may be transcripts of Human and Assistant turns. Ratings: score_chosen and score_rejected, or margin. system, tools: as for
    conversations.
    """
    key = next((name for name in PROMPTS if row.get(name) is not None), None)
    asked = [] if key is None else messages_from(row[key], key, "user")
    if missing := next((name for name in ("chosen", "rejected") if row.get(name) is None), None):
        raise RowError(f"the {missing} answer is missing")
    both = [messages_from(row[name], name, "assistant") for name in ("chosen", "rejected")]
    if asked and _is_transcript(row) and all(TURN.match("\n\n" + row[name].lstrip()) for name in ("chosen", "rejected")):
        begun, answers = _transcripts(row)
        if _within(asked, begun):  # else the answers only look like transcripts
            asked, both = begun, answers
    elif any(messages and messages[0]["role"] != "assistant" for messages in both) or holds(_common(*both), asked):
        stated, asked = asked, _common(*both)
        both = [messages[len(asked) :] for messages in both]
        if not _within(stated, asked):
            raise RowError(f"{key} is not what the conversations in chosen and rejected begin with")
    if not asked:
        raise RowError(_without_prompt(row) if key is None else f"field {key!r} is empty")
    return _pair(below_system(asked, row), [tuple(messages) for messages in both], row)


def _without_prompt(row: Mapping[str, Any]) -> str:
    """What is wrong with a row that has no prompt of its own, and whose conversations do not begin alike."""
    if not all(isinstance(row[name], str) for name in ("chosen", "rejected")):
        return "chosen and rejected answer different prompts"
    shared = os.path.commonprefix([row["chosen"], row["rejected"]])  # noqa: RUF071 (characters are what is meant)
    hint = "; give what both texts begin with there" if shared.strip() else ""
    return f"has no prompt: chosen and rejected are texts, and no field {' or '.join(map(repr, PROMPTS))} says what they answer{hint}"


def holds(messages: Sequence[Message], prompt: Sequence[Message]) -> bool:
    """Whether messages that an answer begins with are its prompt: not the assistant's alone, and beginning with what its field says."""
    return any(message["role"] != "assistant" for message in messages) and list(messages[: len(prompt)]) == list(prompt)


def _within(stated: Sequence[Message], asked: Sequence[Message]) -> bool:
    """Whether everything that the prompt's own field says is said in `asked`."""
    known = [str(message.get("content")).strip() for message in asked]
    return all(str(message.get("content")).strip() in known for message in stated)


def prompt_of(row: Mapping[str, Any]) -> list[Message]:
    """The prompt of a row, in whichever field it is, and its system message. Raises RowError where there is none."""
    key = next((name for name in PROMPTS if row.get(name) is not None), PROMPTS[0])
    asked = [] if row.get(key) is None else messages_from(row[key], key, "user")
    if not asked:
        raise RowError(f"field {key!r} is empty")
    return below_system(asked, row)


def messages_from(value: Any, key: str, role: str) -> list[Message]:
    """A text as one message of `role`, or a list of messages. A prompt may be a transcript that ends where the Assistant is to speak."""
    if isinstance(value, str) and role == "user" and OPEN_TRANSCRIPT.fullmatch(value):
        return _turns(value.rstrip().removesuffix(LAST_TURN))
    if isinstance(value, str):
        return [{"role": role, "content": value}] if value.strip() else []
    if not isinstance(value, (list, tuple)):
        raise RowError(f"field {key!r} must be a string or a list of messages, got {type(value).__name__}")
    return [message_of(message, place) for place, message in enumerate(value, 1)]


def _common(one: Sequence[Message], other: Sequence[Message]) -> list[Message]:
    """The messages that both begin with, up to the last one that an assistant turn follows in both."""
    shared = 0
    while shared < min(len(one), len(other)) and one[shared] == other[shared]:
        shared += 1
    while shared and any(len(messages) > shared and messages[shared]["role"] != "assistant" for messages in (one, other)):
        shared -= 1
    # one conversation may be the other's beginning, or they may be the same: the last turn is the answer
    while shared and shared >= min(len(one), len(other)):
        shared -= 1
    return list(one[:shared])


def _pair(
    asked: Sequence[Message],
    answers: Sequence[tuple[Mapping[str, Any], ...]],
    row: Mapping[str, Any],
    attributes: tuple[Mapping[str, float], Mapping[str, float]] = ({}, {}),
) -> Example:
    """An Example of a prompt and its two answers, checked: both say something, and not the same."""
    for name, messages in zip(("chosen", "rejected"), answers, strict=True):
        if not any(says_something(message) for message in messages if message["role"] == "assistant"):
            raise RowError(f"the {name} answer is empty")
        if messages[0]["role"] != "assistant" or messages[-1]["role"] != "assistant":
            raise RowError(f"the {name} answer must begin and end with an assistant turn")
    if answers[0] == answers[1]:
        raise RowError("chosen and rejected are the same")
    if not asked or asked[-1]["role"] == "assistant":
        raise RowError("the prompt must end in a turn that is not the assistant's")
    better, worse = scores_of(row)
    both = (Answer(answers[0], better, attributes[0]), Answer(answers[1], worse, attributes[1]))
    meta = {"scores": "margin"} if worse is not None and row.get("margin") is not None and not _has_scores(row) else {}
    return Example(messages=tuple(asked), answers=both, tools=tuple(tools_of(row.get("tools"))), meta=meta)


def _has_scores(row: Mapping[str, Any]) -> bool:
    return any(all(number_of(row, name) is not None for name in names) for names in SCORES)


def scores_of(row: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Ratings of the chosen and the rejected answer; a `margin` alone counts as the chosen one's rating above zero."""
    for names in SCORES:
        found = [number_of(row, name) for name in names]
        if None not in found:
            return found[0], found[1]
    margin = number_of(row, "margin")
    return (None, None) if margin is None else (margin, 0.0)


def _is_nan(value: Any) -> bool:
    """Tables write NaN for what is absent."""
    return isinstance(value, float) and math.isnan(value)


def number_of(row: Mapping[str, Any], key: str) -> float | None:
    """A number that float32 can hold; a string that reads as one is understood, "N/A", NaN and absent are None."""
    value = row.get(key)
    if value is None or (isinstance(value, str) and value.strip().upper() in UNKNOWN) or _is_nan(value):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if isinstance(value, bool) or not abs(number) <= LARGEST:
        raise RowError(f"field {key!r} must be a number, got {value!r}")
    return number


@register("code_ultrafeedback", needs=[["instruction", "responses", "annotations"]], kind="preference")
def convert_rated(
    row: Mapping[str, Any], *, preference: str | None = None, pairs: Literal["extremes", "all"] = "extremes"
) -> Example | list[Example] | Filtered:
    """CodeUltraFeedback's raw rows: {"instruction", "preference", "responses": [{"model", "response"}], "annotations": [{"rating"}]}.

    An answer without a rating, or without a text, does not count, and equal ratings or equal answers are no pair. The rating, from 1 to 5,
    is also that of the attribute the row is judged by: readability, efficiency (called complexity there), style, explanation or
    instruction_following.
    preference: only the rows that are judged by it. pairs: the best answer against the worst, or all pairs of a row.
    """
    if preference is not None and row.get("preference") != preference:
        return Filtered(f"preference is not {preference}")
    rated = sorted(_rated(row), key=_rating, reverse=True)
    found = [(a, b) for place, a in enumerate(rated) for b in rated[place + 1 :] if a[0] > b[0] and a[1].strip() != b[1].strip()]
    if not found:
        return Filtered("fewer than two different ratings")
    if pairs == "extremes":  # of equal ratings the first answer counts, at both ends
        found = [max(found, key=lambda pair: pair[0][0] - pair[1][0])]
    asked: list[Message] = [{"role": "user", "content": filled(row, "instruction")}]
    examples = [_rated_pair(asked, better, worse, row) for better, worse in found]
    return examples[0] if pairs == "extremes" else examples


Rated = tuple[float, str]


def _rated(row: Mapping[str, Any]) -> list[Rated]:
    """Rating and text of every answer of a row that has both."""
    responses, annotations = list_of(row, "responses"), list_of(row, "annotations")
    if len(responses) != len(annotations):
        raise RowError(f"{len(responses)} responses but {len(annotations)} annotations")
    rated = []
    for response, annotation in zip(responses, annotations, strict=True):
        if not isinstance(response, Mapping) or not isinstance(annotation, Mapping):
            raise RowError("responses and annotations must be lists of objects")
        rating = number_of(annotation, "rating")
        text = "" if response.get("response") is None else text_of(response, "response")
        if rating is not None and text.strip():
            rated.append((rating, text))
    return rated


def _rated_pair(asked: Sequence[Message], better: Rated, worse: Rated, row: Mapping[str, Any]) -> Example:
    answers = [({"role": "assistant", "content": text},) for _, text in (better, worse)]
    ratings = {"score_chosen": better[0], "score_rejected": worse[0]}
    return _pair(asked, answers, ratings, (_quality(row, better[0]), _quality(row, worse[0])))


def _quality(row: Mapping[str, Any], rating: float) -> dict[str, float]:
    """The attribute that a row is judged by, with a rating on 0..1; none where the row does not say, or the rating is of another scale."""
    judged = row.get("preference")
    if not isinstance(judged, str) or not LEAST <= rating <= MOST:
        return {}
    return {QUALITIES.get(judged, judged): (rating - LEAST) / (MOST - LEAST)}


def _rating(rated: tuple[float, str]) -> float:
    return rated[0]

"""The judge in two turns: what it is asked, what its replies mean, and replies that break the form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from reward_helpers import built, sample

from posttrain.errors import ConfigError
from posttrain.rewards.backends.base import Backend, Question, Silence
from posttrain.rewards.backends.scripted import Scripted
from posttrain.rewards.base import Unscored
from posttrain.rewards.branching import BranchingJudge, boxed_in, dimensions_in
from posttrain.runs.check import compose_and_check


class TwoTurns(Backend):
    """Replies to first turns and to second turns by a function of the two answers."""

    def __init__(self, first: Callable[[str, str], str | Silence], second: Callable[[str, str], str | Silence]) -> None:
        self.turns = (first, second)
        self.asked: list[Question] = []

    def ask(self, questions: Sequence[Question]) -> list[str | Silence]:
        self.asked += questions
        return [self.turns[len(question.messages) // 2](*question.answers) for question in questions]


def shorter(a: str, b: str) -> str:
    return r"\boxed{1}" if len(a) <= len(b) else r"At first \boxed{1}, but no: \boxed{2}"


def test_win_rates_in_two_turns() -> None:
    backend = TwoTurns(lambda *_: "Both are fine.\n**Dimensions:** clarity, Reasoning.", shorter)
    judge = BranchingJudge(backend=backend)
    assert judge.measure([sample(text) for text in ("aaa", "a", "aa", "bb")]) == [
        0,
        1,
        0.5,
        0.5,
    ]  # equals: the first in either order, a tie
    assert len(backend.asked) == 2 * 2 * 6
    first, second = backend.asked[0].messages, backend.asked[12].messages
    for text in (
        "]\naaa\n[end of answer 1 ",
        "]\na\n[end of answer 2 ",
        "How much is 2 + 3?",
        "The expected answer: 5",
        "- Safety: nothing harms",
        "one to 3",
    ):
        assert text in first[0]["content"]
    assert [turn["role"] for turn in second] == ["user", "assistant", "user"]
    assert second[0] == first[0]
    assert second[1]["content"].startswith("Both are fine.")
    assert r"\boxed{1} or \boxed{2}" in second[2]["content"]


def test_what_breaks_the_form_is_no_verdict_and_costs_no_second_question(reward_set: Any) -> None:
    said = {
        "none": "I like it",
        "many": "Dimensions: Safety, Clarity, Reasoning, Accuracy",
        "other": "Dimensions: Style",
        "away": Silence("HTTP 500"),
    }
    backend = TwoTurns(
        lambda a, b: said.get(a, said.get(b, "Dimensions: Safety")), lambda a, b: "both" if "vague" in (a, b) else shorter(a, b)
    )
    answers = [
        sample(text, group=group)
        for group, pair in enumerate([*((name, "x") for name in said), ("vague", "x"), ("a", "bb")])
        for text in pair
    ]
    measured = reward_set(judge=BranchingJudge(backend=backend)).measure(answers)
    assert measured.raw[0].nan_to_num(9).tolist() == [9] * 10 + [1, 0]
    assert measured.failures["judge"].kinds == {"no dimensions": 2, "no choice of 1 to 3 dimensions": 4, "HTTP 500": 2, "no verdict": 2}
    assert sum(len(question.messages) == 3 for question in backend.asked) == 4  # of the last two pairs, in both orders


def test_replies() -> None:
    assert dimensions_in("dimension: b\nDimensions: `A`, a", ["A", "B"], 1) == ["A"]
    assert isinstance(dimensions_in("Dimensions: A, ", ["A"], 1), Unscored)
    assert [boxed_in(rf"\boxed{{{number}}}") for number in (1, " 2 ")] == ["a", "b"]
    assert isinstance(boxed_in(r"\boxed{1} \boxed{3}"), Unscored)


def test_from_the_command_line_with_a_rule_for_a_judge() -> None:
    node = compose_and_check(
        ["method=grpo", "model=nano", "reward=brrm_generative", "reward/backend@reward.brrm_generative.backend=scripted"]
    )
    assert node["reward"]["brrm_generative"]["dimensions"] is None
    judge = built("brrm_generative", backend=Scripted(prefer="longer"), dimensions=["Style", "Depth"], most=1)
    assert judge.compares
    assert judge.measure([sample(text) for text in ("a", "aaa", "aaa")]) == [0, 0.75, 0.75]
    with pytest.raises(ConfigError, match="comma"):
        built("brrm_generative", backend=Scripted(), dimensions=["a,b"])
    with pytest.raises(ConfigError, match="1 to 2"):
        built("brrm_generative", backend=Scripted(), dimensions=["a", "b"], most=3)

"""Critique and revision: what is asked, what becomes of replies that say nothing, which principles are drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from posttrain.errors import ConfigError
from posttrain.rewards.backends.base import Backend, CutOff, Question, Silence
from posttrain.rewards.backends.writer import Writer
from posttrain.rewards.constitution import Constitution, read_principles

PROMPTS = [(number, ({"role": "user", "content": f"question {number}"},)) for number in range(4)]
STAGES = ("answer", "critique", "revision")


class Says(Backend):
    """Replies with what a function makes of the stage and the number of the question."""

    def __init__(self, reply: Callable[[str, int], str | Silence]) -> None:
        self.reply = reply
        self.asked: list[Question] = []

    def ask(self, questions: Sequence[Question]) -> list[str | Silence]:
        self.asked += questions
        return [self.reply(STAGES[len(question.answers)], _number(question)) for question in questions]


def _number(question: Question) -> int:
    return int(str(question.messages[0]["content"]).split("question ")[1][0])


def revised(text: str) -> str:
    return f"Here:\n[revision]\n{text}\n[end of revision]"


def test_half_a_draft_and_half_a_critique_are_gone_on_with() -> None:
    replies: dict[str, str | Silence] = {
        "answer": CutOff("cut", "half an ans"), "critique": CutOff("cut", "it is rud"), "revision": revised("better"),
    }  # fmt: skip
    (made,) = Constitution(Says(lambda stage, _: replies[stage]), ["Be kind."]).revise(PROMPTS[:1])
    assert (made.first, made.rounds[0]["critique"], made.answer, made.failure) == ("half an ans", "it is rud", "better", None)
    replies["revision"] = CutOff("cut", "[revision]\nbett")
    (made,) = Constitution(Says(lambda stage, _: replies[stage]), ["Be kind."]).revise(PROMPTS[:1])
    assert made.failure is not None
    assert made.failure.startswith("no revision")


def test_a_writer_that_follows_a_rule() -> None:
    made = Constitution(Writer(draft="{prompt}: a bad idea", avoid=["bad"], instead="fine"), ["Be kind."], rounds=2).revise(PROMPTS[:1])
    assert made[0].first == "question 0: a bad idea"
    assert made[0].answer == "question 0: a fine idea"
    assert [one["critique"] for one in made[0].rounds] == ["It says bad.", "There is nothing to mend."]


def test_the_questions_hold_request_answer_critique_and_principle() -> None:
    backend = Says(lambda stage, _: {"answer": "the {first} answer", "critique": "it is [rude]", "revision": revised("a new one")}[stage])
    (made,) = Constitution(backend, ["Be {kind}."]).revise(PROMPTS[:1])
    assert made.answer == "a new one"
    draft, critique, revision = (str(question.messages[0]["content"]) for question in backend.asked)
    assert draft == "question 0"
    for text in ("question 0", "the {first} answer", "Be {kind}."):
        assert text in critique
        assert text in revision
    assert "it is [rude]" in revision


def test_a_later_round_mends_the_answer_of_the_one_before() -> None:
    backend = Says(lambda stage, _: revised(f"answer {len(backend.asked)}") if stage == "revision" else stage)
    (made,) = Constitution(backend, ["a"], rounds=3).revise(PROMPTS[:1])
    assert [one["answer"] for one in made.rounds] == ["answer 3", "answer 5", "answer 7"]
    assert [question.answers[0] for question in backend.asked if len(question.answers) == 1] == ["answer", "answer 3", "answer 5"]


def test_failures_cost_their_prompt_alone() -> None:
    replies = {
        (0, "answer"): Silence("HTTP 500: away"),
        (1, "critique"): Silence("given up"),
        (2, "revision"): "I would rather not",
        (3, "answer"): "  ",
    }
    prompts = [*PROMPTS, (4, ({"role": "user", "content": "question 4"},))]
    backend = Says(lambda stage, number: replies.get((number, stage), revised("better")))
    made = Constitution(backend, ["a"], rounds=2).revise(prompts)
    failures = ["no reply: HTTP 500: away", "no reply: given up", "no revision: I would rather not", "no answer: the reply is empty", None]
    assert [one.failure for one in made] == failures
    assert made[4].answer == "better"
    assert len(backend.asked) == 5 + 3 + 2 + 1 + 1  # whoever failed is asked nothing more


@pytest.mark.parametrize("reply", ["[revision]\n[end of revision]", "[revision] no end", "[[revision]]", ""])
def test_replies_without_a_revision(reply: str) -> None:
    (made,) = Constitution(Says(lambda stage, _: reply if stage == "revision" else stage), ["a"]).revise(PROMPTS[:1])
    assert str(made.failure).startswith("no revision")


def test_principles_depend_on_seed_prompt_and_round_alone() -> None:
    def drawn(prompts: Sequence[tuple[int, tuple[dict[str, str], ...]]], seed: int) -> list[list[str]]:
        backend = Says(lambda stage, _: revised("x"))
        return [[one["principle"] for one in made.rounds] for made in Constitution(backend, list("abcdef"), 4, seed).revise(prompts)]

    together = drawn(PROMPTS, 0)
    assert together == [own for prompt in PROMPTS for own in drawn([prompt], 0)]
    assert together != drawn(PROMPTS, 1)
    assert len({text for own in together for text in own}) > 3


def test_principles_from_files(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("- Be kind\n  to animals.\n- Be short.\n")
    assert read_principles(str(file)) == ["Be kind to animals.", "Be short."]
    assert read_principles(["x"]) == ["x"]
    assert len(read_principles(None)) >= 6
    for wrong in ("- a\n- 3\n", "a: b\n", "[]\n", "- [\n", "- ''\n"):
        file.write_text(wrong)
        with pytest.raises(ValueError, match=r"list of texts|no YAML"):
            read_principles(str(file))
    with pytest.raises(ConfigError, match="one word at least"):
        Writer(avoid=[])

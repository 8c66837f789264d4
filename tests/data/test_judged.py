"""Answers with a thumb up or down: the rows they come as, and the trees they become."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from data_helpers import CHATML, END, THINKING, byte_level

from posttrain.data.encoders import Drop, EncodeSettings
from posttrain.data.encoders import get as encoder
from posttrain.data.formats import RowError, detect, get
from posttrain.data.prepare import prepare
from posttrain.data.rows import Row
from posttrain.errors import ConfigError, DataError
from posttrain.types import Answer, Example

USER = {"role": "user", "content": "Hi"}
SYSTEM = {"role": "system", "content": "Be kind."}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


HELLO = assistant("Hello")
EARLIER = [USER, assistant("Yes?"), {"role": "user", "content": "Bye"}]

# row, prompt, answer
ROWS: list[tuple[dict[str, Any], list[dict[str, str]], list[dict[str, str]]]] = [
    ({"prompt": "Hi", "completion": "Hello", "label": True}, [USER], [HELLO]),
    ({"instruction": "Hi", "response": "Hello", "label": True}, [USER], [HELLO]),
    ({"question": "Hi", "answer": "Hello", "label": True}, [USER], [HELLO]),
    ({"query": "Hi", "completion": "Hello", "label": True, "id": 3, "response": None}, [USER], [HELLO]),
    ({"prompt": [USER], "completion": [HELLO], "label": True}, [USER], [HELLO]),
    ({"prompt": [SYSTEM, USER], "completion": "Hello", "label": True}, [SYSTEM, USER], [HELLO]),
    ({"prompt": EARLIER, "completion": [HELLO], "label": True}, EARLIER, [HELLO]),
    ({"prompt": "Hi", "completion": [HELLO, USER, HELLO], "label": True}, [USER], [HELLO, USER, HELLO]),
    ({"messages": [USER, HELLO], "label": True}, [USER], [HELLO]),
    ({"messages": [*EARLIER, HELLO], "label": True}, EARLIER, [HELLO]),
    ({"completion": [USER, HELLO], "label": True}, [USER], [HELLO]),
    ({"prompt": "Hi", "messages": [USER, HELLO], "label": True}, [USER], [HELLO]),
    ({"prompt": "Bye", "messages": [SYSTEM, *EARLIER, HELLO], "label": True}, [SYSTEM, *EARLIER], [HELLO]),
    ({"prompt": "Hi", "completion": "Hello", "label": True, "system": "Be kind."}, [SYSTEM, USER], [HELLO]),
    ({"prompt": [SYSTEM, USER], "completion": "Hello", "label": True, "system": "Be bad."}, [SYSTEM, USER], [HELLO]),
    ({"prompt": "Hi", "completion": "Hello", "label": True, "system": " "}, [USER], [HELLO]),
]


@pytest.mark.parametrize(("row", "prompt", "answer"), ROWS)
def test_rows_are_found_and_read(row: dict[str, Any], prompt: list[Any], answer: list[Any]):
    form = detect([Row(row, "x", 1)], "x")
    assert (form.name, form.kind) == ("feedback", "feedback")
    example = form.convert(row)
    assert isinstance(example, Example)
    assert example.messages == tuple(prompt)
    assert example.answers == (Answer(tuple(answer), 1.0),)


def test_tools_and_calls():
    call = {"function": {"name": "add", "arguments": '{"a": 1}'}}
    row = {
        "prompt": "1+2",
        "completion": [{"role": "assistant", "content": None, "tool_calls": [call]}],
        "label": 1,
        "tools": '[{"name": "add"}]',
    }
    example = get("feedback").convert(row)
    assert isinstance(example, Example)
    assert example.tools == ({"type": "function", "function": {"name": "add"}},)
    assert example.answers[0].messages[0]["tool_calls"][0]["function"]["arguments"] == {"a": 1}


@pytest.mark.parametrize(
    ("value", "score"),
    [
        *((value, 1.0) for value in (True, 1, 1.0, "true", "True", " yes ", "1")),
        *((value, 0.0) for value in (False, 0, -1, 0.0, -1.0, "false", "FALSE", "no", "0", "0.0", "-1")),
    ],
)
def test_labels(value: Any, score: float):
    example = get("feedback").convert({"prompt": "Hi", "completion": "Hello", "label": value})
    assert isinstance(example, Example)
    assert example.answers[0].score == score


@pytest.mark.parametrize("value", [None, 2, 0.5, float("nan"), "good", "", [], [True]])
def test_labels_that_say_neither(value: Any):
    with pytest.raises(RowError, match="field 'label' must be true or false, got"):
        get("feedback").convert({"prompt": "Hi", "completion": "Hello", "label": value})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Hi", "completion": " "}, "the answer is empty"),
        ({"prompt": "Hi", "completion": []}, "the answer is empty"),
        ({"prompt": "Hi", "completion": [assistant(" ")]}, "the answer is empty"),
        ({"messages": [USER]}, "the answer is empty"),
        ({"messages": [USER, assistant("")]}, "the answer is empty"),
        ({"prompt": "Hi"}, "has no answer: expected one of completion, response, answer"),
        ({"prompt": " ", "completion": "Hello"}, "field 'prompt' is empty"),
        ({"instruction": [], "completion": "Hello"}, "field 'instruction' is empty"),
        ({"completion": "Hello"}, "no prompt before the answer"),
        ({"completion": [HELLO]}, "no prompt before the answer"),
        ({"messages": []}, "no prompt before the answer"),
        ({"prompt": "Hi", "completion": 3}, "field 'completion' must be a string or a list of messages, got int"),
        ({"prompt": "Hi", "completion": [HELLO, USER]}, "begin and end with an assistant turn"),
        ({"prompt": "Ho", "messages": [USER, HELLO]}, "prompt is not what the conversation in messages begins with"),
        ({"prompt": "Hi", "completion": ["Hello"]}, "message 1 must be an object"),
        ({"prompt": "Hi", "completion": [{"role": "robot"}]}, "role 'robot'"),
        ({"prompt": "Hi", "completion": "Hello", "system": 3}, "field 'system' must be a string"),
    ],
)
def test_bad_rows(row: dict[str, Any], message: str):
    with pytest.raises(RowError, match=message):
        get("feedback").convert({**row, "label": True})


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"prompt": "Hi", "completion": "Hello", "label": None}, "prompt_completion"),
        ({"messages": [USER, HELLO]}, "messages"),
        ({"prompt": "Hi", "chosen": "Hello", "rejected": "No", "label": 1}, "preference"),
        ({"question": "Hi", "answer": "Hello"}, "question_answer"),
    ],
)
def test_rows_of_other_formats(row: dict[str, Any], name: str):
    assert detect([Row(row, "x", 1)], "x").name == name


def said(text: str, score: float | None = None) -> Answer:
    return Answer((assistant(text),), score)


def encode(*answers: Answer, prompt: Any = (USER,), template: str = CHATML, **settings: Any):
    examples = [Example(messages=prompt, answers=answers)]
    return encoder("feedback")(examples, byte_level(template), EncodeSettings(**{"max_length": 512, **settings}))[0]


def texts(outcome: Any) -> list[str]:
    return [byte_level(CHATML).decode(found.tokens.ids) for found in outcome]


def trained(outcome: Any) -> list[str]:
    return [byte_level(CHATML).decode(found.tokens.ids[found.tokens.weights > 0]) for found in outcome]


ASKED = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("score", [1.0, 0.0])
def test_a_judged_answer_is_one_sequence(score: float):
    outcome = encode(said("Yes", score))
    assert texts(outcome) == [ASKED + "Yes<|im_end|>"]
    assert trained(outcome) == ["Yes<|im_end|>"]
    tokens = outcome[0].tokens
    assert (tokens.segment_lengths.tolist(), tokens.segment_parents.tolist()) == ([len(tokens.ids)], [-1])
    assert tokens.marks.tolist() == [len(tokens.ids) - 1]
    assert tokens.ids[-1] == END
    assert tokens.values.tolist() == [score]


def test_a_pair_is_two_judged_answers():
    outcome = encode(said("Yes", 3.0), said("No", 8.0))  # ratings do not matter: the first one is the chosen one
    assert texts(outcome) == [ASKED + "Yes<|im_end|>", ASKED + "No<|im_end|>"]
    assert [found.tokens.values.tolist() for found in outcome] == [[1.0], [0.0]]
    assert [found.tokens.marks.tolist() for found in outcome] == [[len(found.tokens.ids) - 1] for found in outcome]


def test_several_rows_keep_their_order():
    rows = [
        Example(messages=(USER,), answers=(said("Yes", 1.0),)),
        Example(messages=(USER, HELLO)),
        Example(messages=(USER,), answers=(said("So"), said("No"))),
        Example(messages=(USER,), answers=(said("Why", 0.0),)),
    ]
    one, none, pair, other = encoder("feedback")(rows, byte_level(CHATML), EncodeSettings(max_length=512))
    assert (trained(one), trained(pair), trained(other)) == (["Yes<|im_end|>"], ["So<|im_end|>", "No<|im_end|>"], ["Why<|im_end|>"])
    assert isinstance(none, RowError)
    assert "no judged answer" in str(none)


def test_earlier_assistant_turns_are_not_trained():
    assert trained(encode(said("Yes", 1.0), prompt=tuple(EARLIER))) == ["Yes<|im_end|>"]


def test_system_of_the_settings():
    assert texts(encode(said("Yes", 1.0), system="Be kind."))[0].startswith("<|im_start|>system\nBe kind.<|im_end|>\n")


def test_the_prompt_gives_way_to_the_answer():
    outcome = encode(said("Yes", 1.0), max_length=10)
    assert texts(outcome) == ["stant\nYes<|im_end|>"]
    assert outcome[0].truncated
    assert outcome[0].tokens.marks.tolist() == [9]


def test_each_answer_of_a_pair_is_cut_by_itself():
    outcome = encode(said("Yes" * 20), said("No"), max_length=56)
    assert [found.truncated for found in outcome] == [True, False]
    assert texts(outcome)[1] == ASKED + "No<|im_end|>"
    assert len(outcome[0].tokens.ids) == 56


def test_an_answer_longer_than_everything_loses_its_end():
    assert texts(encode(said("Yes" * 9, 1.0), max_length=10)) == ["\nYesYesYes"]


@pytest.mark.parametrize("answers", [(said("Yes", 1.0),), (said("Yes"), said("No"))])
def test_truncation_on_the_right_drops_what_loses_the_answer(answers: tuple[Answer, ...]):
    assert encode(*answers, max_length=10, truncation="right") == Drop("the answer keeps no token after truncation")


def test_a_pair_that_a_cut_makes_equal_is_dropped():
    pair = said("Yes, that is so"), said("Yes, that is not")
    prompt = len(encode(said("Yes", 1.0))[0].tokens.ids) - 4
    assert encode(*pair, max_length=prompt + 6, truncation="right") == Drop("the answers are the same after truncation")
    assert len(encode(*pair, max_length=prompt + 15, truncation="right")) == 2


def test_truncation_can_drop():
    assert encode(said("Yes", 1.0), max_length=10, truncation="drop") == Drop("longer than max_length=10")
    assert isinstance(encode(said("Yes", 1.0), truncation="drop"), list)


def test_a_template_that_rewrites_turns_refuses_answers_of_several():
    turn = {"role": "assistant", "content": "So", "reasoning_content": "hm"}
    several = Answer((turn, {"role": "user", "content": "Why?"}, turn), 1.0)
    outcome = encode(several, template=THINKING)
    assert isinstance(outcome, RowError)
    assert "rewrites earlier turns" in str(outcome)
    assert isinstance(encode(several, template=THINKING, train_on="last"), list)


@pytest.mark.parametrize("settings", [dict(truncation="split"), dict(train_on="all")])
def test_settings_that_make_no_sense_for_judged_answers(settings: dict[str, Any]):
    with pytest.raises(ConfigError):
        encode(said("Yes", 1.0), **settings)


def write(path: Path, *rows: dict[str, Any]) -> dict[str, Any]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"name": "t", "train": str(path), "cache_dir": str(path.parent / "cache"), "workers": 1, "val_fraction": 0.0}


@pytest.mark.parametrize(
    ("rows", "values"),
    [
        ([{"prompt": "Hi", "completion": "Yes", "label": True}, {"prompt": "Hi", "completion": "No", "label": False}], [1.0, 0.0]),
        ([{"prompt": "Hi", "chosen": "Yes", "rejected": "No"}], [1.0, 0.0]),
    ],
)
def test_files_of_both_kinds_train_it(tmp_path: Path, rows: list[dict[str, Any]], values: list[float]):
    prepared = prepare(write(tmp_path / "t.jsonl", *rows), byte_level(CHATML), kind="feedback", max_length=64)
    got = [prepared.train[place] for place in range(len(prepared.train))]
    assert [example.values.tolist() for example in got] == [[value] for value in values]
    assert [byte_level(CHATML).decode(example.ids[example.weights > 0]) for example in got] == ["Yes<|im_end|>", "No<|im_end|>"]


def test_a_pair_is_not_parted_between_training_and_validation(tmp_path: Path):
    rows = [{"prompt": f"{place}?", "chosen": "Yes", "rejected": "No"} for place in range(6)]
    data = {**write(tmp_path / "t.jsonl", *rows), "val_fraction": 0.5}
    prepared = prepare(data, byte_level(CHATML), kind="feedback", max_length=64)
    for part in (prepared.train, prepared.val):
        assert part is not None
        assert [part[place].values.item() for place in range(len(part))] == [1.0, 0.0] * 3


def test_bad_rows_name_their_line(tmp_path: Path):
    good = {"prompt": "Hi", "completion": "Yes", "label": True}
    data = write(tmp_path / "t.jsonl", good, {**good, "label": "maybe"})
    with pytest.raises(DataError, match=r"t\.jsonl:2.*'label' must be true or false, got 'maybe'"):
        prepare(data, byte_level(CHATML), kind="feedback", max_length=64)


@pytest.mark.parametrize(
    ("kind", "row", "held"),
    [
        ("feedback", {"messages": [USER, HELLO]}, "conversation"),
        ("preference", {"messages": [USER, HELLO], "label": True}, "feedback"),
        ("conversation", {"messages": [USER, HELLO], "label": True}, "feedback"),
    ],
)
def test_data_of_another_kind_is_refused(tmp_path: Path, kind: str, row: dict[str, Any], held: str):
    with pytest.raises(DataError, match=f"holds data of kind {held}; the method trains on {kind}"):
        prepare(write(tmp_path / "t.jsonl", row), byte_level(CHATML), kind=kind, max_length=64)

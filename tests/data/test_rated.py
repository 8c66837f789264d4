"""Rated answers as token trees: the last token of each is marked for its length and for everything it is rated for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from data_helpers import BARE, CHATML, END, byte_level
from test_formats import rows_of
from test_pairs import PROMPT, said

from posttrain.data.arithmetic import problems, ratings
from posttrain.data.encoders import Drop, EncodeSettings, get
from posttrain.data.formats import Filtered, RowError, detect
from posttrain.data.formats import get as get_format
from posttrain.data.prepare import prepare
from posttrain.data.tree import collate
from posttrain.errors import ConfigError
from posttrain.functional.reward import rated
from posttrain.types import Answer, Example, StepShare

NAMES = ("efficiency", "readability")


def encode(*answers: Answer, kind: str = "rated", template: str = CHATML, **settings):
    options = {"max_length": 512, "attributes": NAMES, **settings}
    return get(kind)([Example(messages=PROMPT, answers=answers)], byte_level(template), EncodeSettings(**options))[0]


def with_qualities(text: str, score: float | None = None, **qualities: float) -> Answer:
    return Answer(({"role": "assistant", "content": text},), score, qualities)


def test_an_answer_is_known_by_length_score_and_attributes():
    (found,) = encode(with_qualities("Yes", 8.0, readability=0.75), with_qualities("No", 3.0, readability=0.25), kind="rated_pairs")
    tokens = found.tokens
    assert tokens.ids[tokens.marks].tolist() == [END] * 8
    np.testing.assert_array_equal(tokens.values.reshape(2, 4), [[4, 8, np.nan, 0.75], [3, 3, np.nan, 0.25]])
    assert tokens.weights.sum() == 2
    facts = rated(collate([tokens, tokens], StepShare(4.0, 2, 1)), attributes=2)
    assert facts.place.tolist() == [*tokens.marks[::4], *(tokens.marks[::4] + len(tokens.ids))]
    assert facts.length.tolist() == [4, 3, 4, 3]
    assert facts.score.tolist() == [8, 3, 8, 3]
    assert facts.attributes.shape == (4, 2)


def test_answers_that_begin_alike_share_their_beginning():
    (found,) = encode(said("Yes, yes"), said("Yes, no"), kind="rated_pairs")
    assert len(found.tokens.ids) == len("<user\nHi>\n<assistant\n") + len("Yes, ") + 4 + 3


def test_single_answers_with_a_rating_are_enough():
    (found,) = encode(said("Yes", 0.5))
    assert found.tokens.values[:2].tolist() == [4, 0.5]
    (found,) = encode(said("Yes", 0.5), said("No"), with_qualities("Oh", efficiency=1.0))
    np.testing.assert_array_equal(found.tokens.values.reshape(2, 4), [[4, 0.5, np.nan, np.nan], [3, np.nan, 1, np.nan]])


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (lambda: encode(said("Yes")), "no answer with a rating"),
        (lambda: encode(with_qualities("Yes", style=1.0)), "no answer with a rating"),
        (lambda: encode(said("Yes", 1.0), kind="rated_pairs"), "no pair of answers"),
        (lambda: encode(said("Yes"), said("Yes"), kind="rated_pairs"), "the same tokens"),
    ],
)
def test_what_cannot_be_learnt_from(outcome, message):
    found = outcome()
    assert isinstance(found, RowError)
    assert message in str(found)


def test_an_answer_must_not_end_in_padding():
    tokenizer = byte_level(BARE, eos="<s>")  # pads with what closes a text
    example = Example(messages=PROMPT, answers=(said("Yes", 1.0),))
    found = get("rated")([example], tokenizer, EncodeSettings(max_length=512))[0]
    assert isinstance(found, RowError)
    assert "padding" in str(found)


def test_truncation():
    (found,) = encode(said("Yes", 1.0), max_length=10)
    assert found.truncated
    assert len(found.tokens.ids) == 10
    assert encode(said("Yes", 1.0), max_length=10, truncation="drop") == Drop("longer than max_length=10")
    assert encode(said("Yes", 1.0), max_length=10, truncation="right") == Drop("an answer keeps no token after truncation")
    long = [said("Yes" * 9 + end) for end in ("!", "?")]
    assert encode(*long, kind="rated_pairs", max_length=20) == Drop("the answers are the same after truncation")
    with pytest.raises(ConfigError, match="split"):
        encode(said("Yes", 1.0), truncation="split")


@pytest.mark.parametrize("truncation", ["auto", "right", "left"])
def test_an_answer_that_is_cut_keeps_its_end_token(truncation):
    """The state there is what is judged: without it a model would learn which answers were cut."""
    prompt = len("<user\nHi>\n<assistant\n")
    (found,) = encode(said("Yes" * 20), said("No"), kind="rated_pairs", max_length=prompt + 8, truncation=truncation)
    assert found.truncated
    assert found.tokens.ids[found.tokens.marks].tolist() == [END] * 8
    sequences = np.split(found.tokens.ids, np.cumsum(found.tokens.segment_lengths)[:-1])
    assert len(sequences[0]) + len(sequences[1]) == prompt + 8
    assert bytes(sequences[1][:-1].tolist()).decode().startswith("YesYesY")
    lengths = found.tokens.values.reshape(2, 4)[:, 0].tolist()
    assert lengths == [8 if truncation == "right" else prompt + 7, 3]
    # an end token alone is no answer
    assert encode(said("Yes", 1.0), max_length=prompt + 1, truncation="right") == Drop("an answer keeps no token after truncation")


def test_code_ultrafeedback_rates_one_attribute():
    row = {
        "instruction": "Hi", "preference": "complexity",
        "responses": [{"response": "A"}, {"response": "B"}], "annotations": [{"rating": "5"}, {"rating": "2"}],
    }  # fmt: skip
    convert = get_format("code_ultrafeedback").convert
    assert [answer.attributes for answer in convert(row).answers] == [{"efficiency": 1.0}, {"efficiency": 0.25}]
    assert [answer.attributes for answer in convert(row | {"preference": "style"}).answers] == [{"style": 1.0}, {"style": 0.25}]
    wild = row | {"annotations": [{"rating": "9"}, {"rating": "2"}]}
    assert [answer.attributes for answer in convert(wild).answers] == [{}, {"efficiency": 0.25}]
    assert isinstance(convert(row | {"annotations": [{"rating": "N/A"}, {"rating": "2"}]}), Filtered)


def test_rated_rows():
    convert = get_format("rated").convert
    example = convert({"prompt": "Hi", "response": "Yo", "score": "3", "attributes": {"readability": 4, "style": "N/A"}}, highest=5.0)
    assert example.answers == (Answer(({"role": "assistant", "content": "Yo"},), 3.0, {"readability": 0.8}),)
    with pytest.raises(RowError, match="outside 0 to 1"):
        convert({"prompt": "Hi", "response": "Yo", "attributes": {"style": 4}})
    with pytest.raises(RowError, match="object of ratings"):
        convert({"prompt": "Hi", "response": "Yo", "attributes": 4})
    for nothing in (None, "", []):
        with pytest.raises(RowError, match="'prompt' is empty"):
            convert({"prompt": nothing, "response": "Yo", "score": 1})
    with pytest.raises(RowError, match="end in a turn"):
        convert({"prompt": [{"role": "assistant", "content": "Hi"}], "response": "Yo", "score": 1})


def test_a_row_without_a_prompt_does_not_end_the_data(tmp_path: Path):
    rows = [{"prompt": None if place == 300 else f"Say {place}", "response": "Yo", "score": place} for place in range(600)]
    path = tmp_path / "rated.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    node = {"train": str(path), "cache_dir": str(tmp_path), "on_error": "skip"}
    (source,) = prepare(node, byte_level(CHATML), kind="rated", max_length=512).report.sources
    assert (source.rows, source.kept, source.bad) == (600, 599, 1)


def test_helpsteer_rows():
    row = {"prompt": "Hi", "response": "Yo", "helpfulness": 3, "correctness": 4, "coherence": 4, "complexity": 1, "verbosity": 0}
    (answer,) = get_format("helpsteer").convert(row).answers
    assert (answer.score, answer.attributes["complexity"]) == (3, 0.25)
    with pytest.raises(RowError, match="between 0 and 4"):
        get_format("helpsteer").convert(row | {"coherence": 7})


def test_a_score_beside_a_conversation_does_not_keep_it_from_being_one():
    row = {"prompt": "Hi", "completion": "Yo", "score": 3}
    assert detect(rows_of(row), "x").name == "rated"
    assert detect(rows_of(row), "x", kinds=("conversation", "text")).kind == "conversation"
    assert detect(rows_of({"prompt": "Hi", "chosen": "A", "rejected": "B"}), "x", kinds=("conversation",)).kind == "preference"


def test_ultrafeedback_rows_have_several_answers():
    notes = {"helpfulness": {"Rating": "5", "Rationale": "ok"}, "honesty": {"Rating": "N/A"}}
    row = {
        "source": "x", "instruction": "Hi", "models": ["a", "b"],
        "completions": [
            {"model": "a", "response": "Yo", "fine-grained_score": 4.5, "overall_score": 8.0, "annotations": notes},
            {"model": "b", "response": "Ho", "fine-grained_score": None, "annotations": {}},
        ],
    }  # fmt: skip
    form = detect(rows_of(row), "x")
    assert (form.name, form.kind) == ("ultrafeedback", "rated")
    first, second = form.convert(row).answers
    assert (first.score, first.attributes, second.score) == (4.5, {"helpfulness": 1.0}, None)
    assert form.convert(row, score="overall_score").answers[0].score == 8.0
    outcome = get("rated")([form.convert(row)], byte_level(CHATML), EncodeSettings(max_length=512, attributes=("helpfulness",)))[0]
    assert outcome[0].tokens.values.tolist() == [3, 4.5, 1.0]
    with pytest.raises(RowError, match="'response' is empty"):
        form.convert({"instruction": "Hi", "completions": [{"response": " "}]})


def test_generated_ratings_are_the_share_of_the_work():
    whole = {row["question"]: row["answer"] for row in problems("train", train=60, held_out=5)}
    for row in ratings("train", train=60, held_out=5):
        lines = whole[row["prompt"]].split("\n")
        given = row["response"].split("\n")
        assert lines[: len(given)] == given
        assert row["score"] == len(given) / len(lines)

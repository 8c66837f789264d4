"""Pairs as token trees: the prompt once, a branch for each answer, and answers that truncation leaves alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from data_helpers import BARE, CHATML, END, THINKING, byte_level, real

from posttrain.data.arithmetic import pairs
from posttrain.data.encoders import Drop, Encoded, EncodeSettings, get
from posttrain.data.encoders.preference import fit
from posttrain.data.formats import RowError
from posttrain.data.prepare import prepare
from posttrain.data.tree import collate
from posttrain.errors import ConfigError, DataError
from posttrain.types import Answer, Example, StepShare

PROMPT = ({"role": "user", "content": "Hi"},)


def said(text: str, score: float | None = None) -> Answer:
    return Answer(({"role": "assistant", "content": text},), score)


def encode(example: Example, template: str = CHATML, **settings):
    return get("preference")([example], byte_level(template), EncodeSettings(**{"max_length": 512, **settings}))[0]


def encoded(*answers: Answer, prompt=PROMPT, **settings) -> Encoded:
    outcome = encode(Example(messages=prompt, answers=answers), **settings)
    assert isinstance(outcome, list)
    return outcome[0]


def texts(found: Encoded) -> list[str]:
    tokenizer, tokens = byte_level(CHATML), found.tokens
    return [tokenizer.decode(part) for part in np.split(tokens.ids, np.cumsum(tokens.segment_lengths)[:-1])]


def test_the_prompt_is_there_once():
    found = encoded(said("Yes", 8.0), said("No", 3.0))
    asked = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert texts(found) == [asked, "Yes<|im_end|>", "No<|im_end|>"]
    assert found.tokens.segment_parents.tolist() == [-1, 0, 0]
    # an answer's every token is trained, its first included
    assert [int(w.sum()) for w in np.split(found.tokens.weights, np.cumsum(found.tokens.segment_lengths)[:-1])] == [0, 4, 3]
    assert found.tokens.ids[found.tokens.marks].tolist() == [END, END]
    assert found.tokens.values.tolist() == [8.0, 3.0]
    assert not found.truncated


def test_marks_follow_the_answers_into_a_micro_batch():
    one, other = encoded(said("Yes", 1.0), said("No")).tokens, encoded(said("Why"), said("What", 2.0)).tokens
    tree = collate([one, other], StepShare(1.0, 2, 1))
    assert tree.mark_segment.tolist() == [1, 2, 4, 5]
    assert tree.ids[tree.mark].tolist() == [END] * 4
    np.testing.assert_array_equal(tree.value, [1.0, np.nan, np.nan, 2.0])


def test_earlier_assistant_turns_are_not_trained():
    prompt = (*PROMPT, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Bye"})
    assert encoded(said("Yes"), said("No"), prompt=prompt).tokens.weights.sum() == 7


def test_answers_that_begin_alike_do_not_share_their_beginning():
    assert texts(encoded(said("Yes!"), said("Yes?")))[1:] == ["Yes!<|im_end|>", "Yes?<|im_end|>"]


def test_the_prompt_gives_way_to_the_answers():
    found = encoded(said("Yes"), said("No"), max_length=10)
    assert found.truncated
    assert texts(found) == ["stant\n", "Yes<|im_end|>", "No<|im_end|>"]


def test_an_answer_longer_than_everything_loses_its_end():
    found = encoded(said("Yes" * 9), said("No"), max_length=10)
    assert found.truncated
    assert texts(found) == ["\n", "YesYesYes", "No<|im_end|>"]


def test_truncation_on_the_right_drops_what_loses_an_answer():
    outcome = encode(Example(messages=PROMPT, answers=(said("Yes"), said("No"))), max_length=10, truncation="right")
    assert outcome == Drop("an answer keeps no token after truncation")


def test_truncation_can_drop():
    outcome = encode(Example(messages=PROMPT, answers=(said("Yes"), said("No"))), max_length=10, truncation="drop")
    assert outcome == Drop("longer than max_length=10")


def test_fit_cuts_the_same_from_every_prompt():
    ids, weights = np.arange(8), np.array([0, 0, 0, 0, 1, 1, 1, 1.0])
    cut = fit([(ids, weights), (ids[:6], weights[:6])], 6, keep_prompt=False)
    assert [c[0].tolist() for c in cut] == [[2, 3, 4, 5, 6, 7], [2, 3, 4, 5]]


def test_the_same_tokens_are_no_pair():
    stripped = (
        "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    outcome = encode(Example(messages=PROMPT, answers=(said("Yes"), said("Yes "))), template=stripped)
    assert isinstance(outcome, RowError)


def test_a_template_that_rewrites_turns_refuses_answers_of_several():
    turn = {"role": "assistant", "content": "So", "reasoning_content": "hm"}
    several = Answer((turn, {"role": "user", "content": "Why?"}, turn))
    outcome = encode(Example(messages=PROMPT, answers=(several, said("No"))), template=THINKING)
    assert isinstance(outcome, RowError)
    assert "rewrites earlier turns" in str(outcome)
    assert isinstance(encode(Example(messages=PROMPT, answers=(several, said("No"))), template=THINKING, train_on="last"), list)


def test_an_answer_of_several_turns_is_one_sequence_where_no_token_ends_turns():
    turn = {"role": "assistant", "content": "So"}
    several = Answer((turn, {"role": "user", "content": "Why?"}, turn))
    (found,) = encode(Example(messages=PROMPT, answers=(several, said("No"))), template=BARE)
    branches = np.split(found.tokens.ids, np.cumsum(found.tokens.segment_lengths)[:-1])
    assert byte_level(BARE).decode(branches[1]) == "So\nuser: Why?\nassistant: So</s>"


@pytest.mark.parametrize("settings", [dict(truncation="split"), dict(train_on="all")])
def test_settings_that_make_no_sense_for_pairs(settings):
    with pytest.raises(ConfigError):
        encode(Example(messages=PROMPT, answers=(said("Yes"), said("No"))), **settings)


def test_conversations_are_refused_with_their_row(tmp_path: Path):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"messages": [PROMPT[0], {"role": "assistant", "content": "Hello"}]}))
    with pytest.raises(DataError, match="holds data of kind conversation; the method trains on preference"):
        prepare({"name": "t", "train": str(path)}, byte_level(CHATML), kind="preference", max_length=64)


def test_pairs_are_refused_as_conversations(tmp_path: Path):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"prompt": "Hi", "chosen": "Yes", "rejected": "No"}))
    with pytest.raises(DataError, match="holds data of kind preference; the method trains on conversation"):
        prepare({"name": "t", "train": str(path)}, byte_level(CHATML), kind="conversation", max_length=64)


def test_real_transcripts_are_counted():
    data = {"name": "hh", "train": str(real("hh_harmless.jsonl.gz")), "on_error": "skip"}
    prepared = prepare(data, byte_level(CHATML), kind="preference", max_length=256)
    (source,) = [source for source in prepared.report.sources if source.part == "train"]
    assert (source.format, source.rows, source.bad) == ("hh", 2312, 9)
    assert sum("different prompts" in reason for _, reason in source.losses) == 5
    assert sum("answer is empty" in reason for _, reason in source.losses) == 4
    assert source.examples == 2303
    assert source.truncated > 0
    assert all(example.marks.shape == (2,) and (example.weights[example.marks] > 0).all() for example in prepared.train)


@pytest.mark.parametrize("flaw", ["bare", "wrong"])
def test_generated_pairs(flaw):
    rows = list(pairs("train", flaw=flaw, train=300))
    assert len(rows) == 300
    for row in rows:
        right, other = (row[name].rpartition("#### ") for name in ("chosen", "rejected"))
        assert eval(row["prompt"].rstrip("=?")) == int(right[2])
        assert (other[0] == "") == (flaw == "bare")
        assert (other[2] == right[2]) == (flaw == "bare")


def rated_row(*ratings: str, text: str = "code {}") -> dict:
    responses = [{"model": "m", "response": text.format(place)} for place in range(len(ratings))]
    return {"instruction": "Sort", "preference": "style", "responses": responses, "annotations": [{"rating": rating} for rating in ratings]}


def test_all_pairs_of_a_rated_row(tmp_path: Path):
    path = tmp_path / "rated.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (rated_row("5", "N/A", "3", "1", "3"), rated_row("2", "2"))))
    node = {"train": str(path), "cache_dir": str(tmp_path), "val_fraction": 0.0}
    found = prepare({**node, "format_options": {"pairs": "all"}}, byte_level(CHATML), kind="preference", max_length=512)
    (source,) = found.report.sources
    assert (source.rows, source.kept, source.examples, source.lost) == (2, 1, 5, 1)
    assert sorted(tuple(found.train[i].values.tolist()) for i in range(5)) == [(3.0, 1.0), (3.0, 1.0), (5.0, 1.0), (5.0, 3.0), (5.0, 3.0)]
    one = prepare(node, byte_level(CHATML), kind="preference", max_length=512)
    assert [one.train[i].values.tolist() for i in range(len(one.train))] == [[5.0, 1.0]]


def test_equal_answers_with_different_ratings_are_no_pair():
    from posttrain.data.formats import Filtered
    from posttrain.data.formats import get as get_format

    assert isinstance(get_format("code_ultrafeedback").convert(rated_row("5", "1", text="same")), Filtered)


def test_an_answer_without_text_does_not_cost_the_other_answers():
    from posttrain.data.formats import get as get_format

    row = rated_row("5", "4", "1")
    row["responses"][0]["response"], row["responses"][2]["response"] = " ", None
    row["responses"].append({"model": "m", "response": "slow"})
    row["annotations"].append({"rating": "2"})
    found = get_format("code_ultrafeedback").convert(row)
    assert [(answer.messages[0]["content"], answer.score) for answer in found.answers] == [("code 1", 4.0), ("slow", 2.0)]


def test_an_answer_whose_last_turn_has_no_weight_is_refused():
    silent = Answer(({"role": "assistant", "content": "Yes", "weight": 0.0},))
    assert "the last turn of an answer has a weight of 0" in str(encode(Example(messages=PROMPT, answers=(silent, said("No")))))

"""Worked answers with labelled steps: formats, marks at the last token of each step, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from data_helpers import CHATML, byte_level
from test_formats import rows_of

from posttrain.data.arithmetic import stepwise
from posttrain.data.encoders import Drop, EncodeSettings, get
from posttrain.data.encoders.steps import last_tokens
from posttrain.data.formats import RowError, detect
from posttrain.data.formats import get as get_format
from posttrain.errors import ConfigError

ROW = {"prompt": "1+1?", "completions": ["1 + 1", "= 2", "so 3"], "labels": [True, 1, False]}
SHEPHERD = {
    "input": "How many? Step 1: One. ки\nStep 2: Two. ки",
    "label": "How many? Step 1: One. +\nStep 2: Two. -",
    "task": "GSM8K",
}


def encode(row=ROW, form="stepwise", options=None, template=CHATML, **settings):
    example = get_format(form).convert(row, **(options or {}))
    return get("steps")([example], byte_level(template), EncodeSettings(**{"max_length": 512, **settings}))[0]


def marked(outcome) -> list[str]:
    """The text up to each mark, from the end of the mark before."""
    (found,) = outcome
    ids, marks = found.tokens.ids, found.tokens.marks
    return [byte_level(CHATML).decode(ids[start:end]) for start, end in zip([0, *(marks[:-1] + 1)], marks + 1, strict=True)]


def test_a_step_is_marked_at_its_last_token():
    found = encode()
    asked = "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    assert marked(found) == [f"{asked}1 + 1", "\n= 2", "\nso 3"]
    assert found[0].tokens.values.tolist() == [1, 1, 0]
    assert found[0].tokens.weights.sum() == 3


def test_formats_are_detected():
    assert detect(rows_of(ROW), "x").name == "stepwise"
    assert detect(rows_of(SHEPHERD), "x").name == "math_shepherd"


def test_math_shepherd():
    example = get_format("math_shepherd").convert(SHEPHERD)
    assert [message["content"] for message in example.messages] == ["How many?", "Step 1: One.\nStep 2: Two."]
    assert [step.label for step in example.steps] == [1, 0]
    assert marked(encode(SHEPHERD, "math_shepherd"))[1] == "\nStep 2: Two."


def test_separator_and_unknown_labels():
    found = encode(ROW | {"labels": [None, True, False]}, options={"separator": "\n\n"})
    assert marked(found)[0].endswith("1 + 1\n\n= 2")
    assert found[0].tokens.values.tolist() == [1, 0]


@pytest.mark.parametrize(("neutral", "wanted"), [("right", [0, 1, 1]), ("wrong", [0, 0, 1]), ("unknown", [0, 1])])
def test_ternary_labels(neutral, wanted):
    found = encode(ROW | {"labels": [-1, 0, 1]}, options={"labels": "ternary", "neutral": neutral})
    assert found[0].tokens.values.tolist() == wanted


@pytest.mark.parametrize(
    ("row", "form", "message"),
    [
        (ROW | {"labels": [True]}, "stepwise", "3 completions but 1 labels"),
        (ROW | {"completions": ["a", " ", "b"]}, "stepwise", "step 2 is empty"),
        (ROW | {"completions": ["a", 3, "b"]}, "stepwise", "step 2 must be a string"),
        (ROW | {"completions": [], "labels": []}, "stepwise", "no steps"),
        (ROW | {"labels": [None] * 3}, "stepwise", "no labelled step"),
        (ROW | {"labels": [1, -1, 1]}, "stepwise", "label 2 is -1.*ternary"),
        (ROW | {"labels": [1, "good", 1]}, "stepwise", "label 2 is 'good'"),
        (SHEPHERD | {"label": SHEPHERD["label"].replace("One", "on")}, "math_shepherd", "is not the input"),
        (ROW | {"prompt": None}, "stepwise", "'prompt' is empty"),
        (ROW | {"prompt": []}, "stepwise", "'prompt' is empty"),
        ({"input": "No. ки Step 1: x ки", "label": "No. + Step 1: x +"}, "math_shepherd", "does not begin with 'Step 1:'"),
        (SHEPHERD | {"input": SHEPHERD["input"] + " more", "label": SHEPHERD["label"] + " more"}, "math_shepherd", "goes on"),
    ],
)
def test_bad_rows(row, form, message):
    with pytest.raises(RowError, match=message):
        get_format(form).convert(row)


def test_truncation_loses_steps():
    whole = len(encode()[0].tokens.ids)
    cut = encode(max_length=whole - len("\nso 3"))
    assert (cut[0].truncated, cut[0].tokens.values.tolist()) == (True, [1, 1])
    assert encode(max_length=20) == Drop("keeps no labelled step after truncation")
    assert encode(max_length=20, truncation="drop") == Drop("longer than max_length=20")
    left = encode(max_length=14, truncation="left")
    assert marked(left) == ["2", "\nso 3"] or left[0].tokens.values.tolist()[-1] == 0
    with pytest.raises(ConfigError, match="split"):
        encode(truncation="split")


def test_a_template_that_strips_keeps_the_places():
    template = CHATML.replace("m.content", "m.content | trim")
    assert marked(encode(ROW | {"completions": [" 1 + 1", "= 2", "so 3"]}, template=template))[1:] == ["\n= 2", "\nso 3"]


def test_a_template_that_changes_the_answer_is_refused():
    found = encode(template=CHATML.replace("m.content", "m.content | upper"))
    assert isinstance(found, RowError)


def test_the_last_token_may_hold_more_than_the_step():
    # characters 0-2, 2-5 (a step ends at 4 inside it), 5-5 (a token of no characters), 5-7
    offsets = np.array([[0, 2], [2, 5], [5, 5], [5, 7]])
    assert last_tokens(offsets, [2, 4, 5, 7]).tolist() == [0, 1, 1, 3]


def test_a_step_that_ends_in_a_character_of_several_tokens_is_marked_at_the_last_of_them():
    found = encode(ROW | {"completions": ["1 + 1 = ②", "= 2 ✓", "so 3"]})
    assert [text.rpartition("\n")[2] for text in marked(found)] == ["1 + 1 = ②", "= 2 ✓", "so 3"]


def test_generated_traces_go_wrong_once():
    rows = list(stepwise("train", wrong=0.5, train=400, held_out=10, seed=3))
    broken = [row for row in rows if not all(row["labels"])]
    assert 0.4 < len(broken) / len(rows) < 0.6
    for row in rows:
        first = row["labels"].index(False) if False in row["labels"] else len(row["labels"])
        assert row["labels"] == [place < first for place in range(len(row["labels"]))]
        for place, step in enumerate(row["completions"][:-1]):
            terms, _, result = step.partition("=")
            assert (eval(terms) == int(result)) == (place != first)

"""Multiple choice by log-likelihood: rows of each known shape, and scores equal to plain forwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from posttrain.errors import DataError
from posttrain.evaluation.suites.choice import multiple_choice, prompt_ids
from posttrain.evaluation.suites.questions import Question, parse

VNHSGE = {"ID": "MET_Bio_IE_2019_1", "Image_Question": "", "Question": "C\u00e2u 1: 1+1?\nA. 1.\nB. 2.\nC. 3.\nD. 4.", "Choice": "B"}
VILLM = {"question": "1+1?", "choices": {"text": ["one", "two"], "labels": ["A", "B"]}, "answerKey": "B"}
MMLU = {"question": "1+1?", "choices": ["one", "two", "three"], "answer": 1, "subject": "maths"}


@pytest.mark.parametrize(
    ("row", "labels", "answer", "subject"),
    [
        (VNHSGE, "ABCD", 1, "Bio"),
        ({"ID": "x", "Q": "1+1?\n A) 1\n B) 2", "C": "a.", "IQ": ""}, "AB", 0, ""),
        (VILLM, "AB", 1, ""),
        ({"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}, "12", 1, ""),
        (MMLU, "ABC", 1, "maths"),
        ({**MMLU, "answer": "C"}, "ABC", 2, "maths"),
    ],
)
def test_shapes(row: dict[str, Any], labels: str, answer: int, subject: str) -> None:
    question = parse(row)
    assert isinstance(question, Question)
    assert (question.labels, question.answer, question.subject) == (tuple(labels), answer, subject)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**VNHSGE, "Image_Question": "a.png"}, "image"),
        ({**VNHSGE, "Question": "no options"}, "no options"),
        ({**VNHSGE, "Choice": "E"}, "none of the options"),
        ({**VILLM, "answerKey": ""}, "none of the options"),
        ({**VILLM, "choices": {"text": ["one"], "labels": ["A", "B"]}}, "1 options with 2 labels"),
        ({**VILLM, "choices": {"text": ["one", " "], "labels": ["A", "B"]}}, "empty"),
        ({**MMLU, "choices": "one"}, "no list"),
        ({**MMLU, "answer": 7}, "none of the options"),
        ({"prompt": "x"}, "expected the fields"),
    ],
)
def test_unusable_rows_say_why(row: dict[str, Any], reason: str) -> None:
    found = parse(row)
    assert isinstance(found, str)
    assert reason in found


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def plain_logp(model: Qwen3ForCausalLM, prompt: list[int], answer: list[int]) -> float:
    ids = torch.tensor([prompt + answer])
    with torch.no_grad():
        logps = model(input_ids=ids).logits[0].log_softmax(-1)
    return float(sum(logps[place - 1, ids[0, place]] for place in range(len(prompt), ids.shape[1])))


@pytest.mark.parametrize("compare", ["letter", "text"])
@pytest.mark.parametrize("max_tokens", [1, 10_000])
def test_scores_equal_plain_forwards(
    random_model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, compare: Any, max_tokens: int
) -> None:
    data = write(tmp_path / "q.jsonl", [VILLM, MMLU])
    result = multiple_choice(random_model, tokenizer, data=data, compare=compare, max_tokens=max_tokens, instruction="Pick.")
    for row, options in zip(result.rows, (["one", "two"], ["one", "two", "three"]), strict=True):
        prompt = prompt_ids(tokenizer, f"{row['question']}\nPick.")
        answers = options if compare == "text" else list(row["logps"])
        expected = [plain_logp(random_model, prompt, tokenizer(answer)["input_ids"]) for answer in answers]
        assert list(row["logps"].values()) == pytest.approx(expected, rel=1e-5)
        assert row["chosen"] == "ABC"[int(np.argmax(expected))]
    assert result.metrics["accuracy"] == np.mean([row["chosen"] == "B" for row in result.rows])
    assert ("accuracy_norm" in result.metrics) == (compare == "text")


def test_counts_what_it_left_out_and_splits_by_subject(
    random_model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows = [VNHSGE, {**VNHSGE, "Image_Question": "a.png"}, {**VNHSGE, "ID": "MET_Che_IE_2019_2"}]
    result = multiple_choice(random_model, tokenizer, data=write(tmp_path / "q.jsonl", rows))
    assert result.details == {"left_out": 1, "reasons": {"the question needs an image": 1}}
    assert set(result.metrics) == {"accuracy", "n", "Bio/accuracy", "Che/accuracy"}
    assert len(multiple_choice(random_model, tokenizer, data=write(tmp_path / "q.jsonl", rows), limit=1).rows) == 1


def test_errors(random_model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        multiple_choice(random_model, tokenizer, data=str(tmp_path / "absent.jsonl"))
    with pytest.raises(DataError, match="no usable question: the question needs an image"):
        multiple_choice(random_model, tokenizer, data=write(tmp_path / "a.jsonl", [{**VNHSGE, "Image_Question": "a.png"}]))
    with pytest.raises(DataError, match="compare=letter"):
        multiple_choice(random_model, tokenizer, data=write(tmp_path / "b.jsonl", [VNHSGE]), compare="text")

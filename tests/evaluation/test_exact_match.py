"""Generative exact match on a model that knows its answers, and the pieces it is made of."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from posttrain.evaluation.exact_match import ExactMatch, exact_match, extract, from_rows, merge
from posttrain.evaluation.generation import generator_of


@dataclass(frozen=True)
class Example:
    prompt_ids: list[int]
    prompt_text: str
    answer: str
    example_index: int


@pytest.fixture
def examples(known: dict[str, str], ask: Callable[[str], list[int]]) -> list[Example]:
    """The model knows the first answer; to the second question it says 8."""
    return [Example(ask(q), q, a, i) for i, (q, a) in enumerate(zip(known, ["4.0", "9"], strict=True))]


def test_counts_what_is_right(trained_model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, examples: list[Example]) -> None:
    result = exact_match(generator_of(trained_model, tokenizer), tokenizer, examples, max_new_tokens=20)
    assert (result.accuracy, result.n) == (0.5, 2)
    assert result.rows[0] == {
        "example": 0,
        "prompt": "2+2?",
        "completion": "It is 4.",
        "expected": "4.0",
        "extracted": "4",
        "correct": True,
    }
    assert not result.rows[1]["correct"]


def test_ranks_merge_to_the_whole(trained_model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, examples: list[Example]) -> None:
    generator = generator_of(trained_model, tokenizer)
    parts = [exact_match(generator, tokenizer, [example], max_new_tokens=20) for example in reversed(examples)]
    sent = [from_rows(json.loads(json.dumps(part.rows))) for part in parts]
    assert merge(sent) == exact_match(generator, tokenizer, examples, max_new_tokens=20)


def test_nothing_to_check_is_nan_not_zero() -> None:
    assert math.isnan(ExactMatch(()).accuracy)


@pytest.mark.parametrize(
    ("completion", "expected", "found"),
    [
        ("The answer is (B).", "B", "B"),
        ("B. because", "(B)", "B"),
        ("so 4 #### 5", "5", "5"),
        ("Paris", "Paris", "Paris"),
        ("I really could not say where that might be at all", "Paris", None),
        ("", "4", None),
    ],
)
def test_extract(completion: str, expected: str, found: str | None) -> None:
    assert extract(completion, expected=expected) == found

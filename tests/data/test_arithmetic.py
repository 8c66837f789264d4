"""Generated arithmetic: right, disjoint, reproducible."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data.arithmetic import documents, pairs, problems, ratings, stepwise, worked
from posttrain.errors import ConfigError


@given(st.integers(0, 99_999), st.integers(0, 99_999))
def test_the_steps_are_true_and_lead_to_the_result(a: int, b: int):
    high, low = max(a, b), min(a, b)
    for text, result in ((worked(a, b, "add"), a + b), (worked(high, low, "subtract"), high - low)):
        *steps, last = text.splitlines()
        assert last == f"#### {result}"
        digits, left_over = "", 0
        for step in steps:
            numbers, right = [int(n) for n in re.findall(r"\d+", step.split("=")[0])], int(step.split("=")[1])
            assert numbers[2] == left_over
            assert right == (sum(numbers) if "+" in step else numbers[0] - numbers[1] - numbers[2])
            left_over = (right if "+" in step else numbers[0]) // 10
            digits = str(right % 10) + digits
        assert int(f"{left_over}{digits}") == result


def test_splits_are_disjoint_and_follow_the_seed():
    train = [row["question"] for row in problems("train", train=3000, held_out=200)]
    val = [row["question"] for row in problems("val", train=3000, held_out=200)]
    assert (len(train), len(set(train)), len(val)) == (3000, 3000, 200)
    assert not set(train) & set(val)
    assert train == [row["question"] for row in problems("train", train=3000, held_out=200)]
    assert train != [row["question"] for row in problems("train", train=3000, held_out=200, seed=1)]


def test_digits_and_operations():
    rows = list(problems("train", digits=1, operations=("add",), held_out=10))
    assert len(rows) == 90
    assert all(re.fullmatch(r"\d\+\d=\?", row["question"]) for row in rows)
    assert all(re.fullmatch(r"[1-9]\d[+-][1-9]\d=\?", row["question"]) for row in problems("train", train=2000))
    assert len(list(problems("train", digits=4, train=500, held_out=10))) == 500
    assert not any("-" in row["question"] and eval(row["question"][:-2]) < 0 for row in problems("train", train=2000))
    with pytest.raises(ConfigError, match="divide"):
        list(problems("train", operations=("divide",)))


@pytest.mark.parametrize("make", [problems, pairs, stepwise, ratings, documents])
@pytest.mark.parametrize("wrong", [{"digits": 10}, {"digits": -1}, {"held_out": -1}, {"train": -1}, {"seed": -1}, {"digits": 1.5}])
def test_numbers_that_no_problems_can_be_made_of(make: Callable[..., Iterator[object]], wrong: dict[str, int]):
    (key,) = wrong
    with pytest.raises(ConfigError, match=rf"data\.generator\.{key}: expected a whole number from"):
        next(make("train", **wrong))


def test_the_longest_numbers():
    row = next(problems("train", digits=9, train=5, held_out=0))
    assert re.fullmatch(r"\d{9}[+-]\d{9}=\?", row["question"])


def test_documents_hold_the_same_problems():
    rows = zip(problems("val"), documents("val"), strict=True)
    assert all(text["text"] == f"{row['question']}\n{row['answer']}\n" for row, text in rows)

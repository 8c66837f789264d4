"""Generated arithmetic with worked steps: sums and differences of two whole numbers, digit by digit, so that a tiny model can learn it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from posttrain.errors import ConfigError, Problem

SYMBOLS = {"add": "+", "subtract": "-"}
MOST_DIGITS = 9  # the pairs of longer numbers cannot be counted in 64 bits


def problems(
    split: str,
    *,
    operations: Sequence[str] = ("add", "subtract"),
    digits: int = 2,
    train: int = 20_000,
    held_out: int = 500,
    seed: int = 0,
    guessed: Mapping[str, float] | None = None,
) -> Iterator[dict[str, str]]:
    """Rows {"question", "answer"}; the answer ends in ``#### N``.

    split: train or val; no problem is in both. operations: add, subtract (never below zero). digits: of each number.
    train, held_out: rows of each split; where fewer different problems exist, all that are left train. seed: of the choice and the order.
    guessed: by operation, the share of the training answers that are a number of about the right size without steps; what has seen both
    kinds guesses, and now and then works it out.
    """
    _check(operations, {"digits": digits, "train": train, "held_out": held_out, "seed": seed})
    return _rows(split, _choose(operations, digits, held_out, train, seed), digits, held_out, seed, guessed or {})


def _check(operations: Sequence[str], numbers: Mapping[str, int]) -> None:
    """Raises ConfigError for operations that are not known, and for numbers that no problems can be made of."""
    found = []
    if unknown := sorted(set(operations) - SYMBOLS.keys()):
        message = f"unknown: {', '.join(unknown)}, expected some of {', '.join(SYMBOLS)}"
        found.append(Problem("data.generator.operations", message))
    for name, value in numbers.items():
        allowed, words = (range(1, MOST_DIGITS + 1), f"1 to {MOST_DIGITS}") if name == "digits" else (range(sys.maxsize), "0")
        if not isinstance(value, int) or isinstance(value, bool) or value not in allowed:
            found.append(Problem(f"data.generator.{name}", f"expected a whole number from {words}, got {value!r}"))
    if found:
        raise ConfigError(found)


def _rows(
    split: str, chosen: Sequence[tuple[int, int, str]], digits: int, held_out: int, seed: int, guessed: Mapping[str, float]
) -> Iterator[dict[str, str]]:
    random = np.random.default_rng([seed, digits, 1])
    for a, b, operation in chosen[:held_out] if split == "val" else chosen[held_out:]:
        guesses = split != "val" and random.random() < guessed.get(operation, 0.0)
        answer = f"#### {random.integers(2 * 10**digits)}" if guesses else worked(int(a), int(b), operation)
        yield {"question": f"{a}{SYMBOLS[operation]}{b}=?", "answer": answer}


def _choose(operations: Sequence[str], digits: int, held_out: int, train: int, seed: int) -> list[tuple[int, int, str]]:
    """Different problems in a random order, the held-out ones first."""
    random = np.random.default_rng(np.random.SeedSequence([seed, digits]))
    low = 10 ** (digits - 1) if digits > 1 else 0
    span = 10**digits - low
    count = len(operations) * span * span
    codes = random.permutation(count) if count < 10**7 else random.integers(0, count, 4 * (train + held_out))
    found: dict[tuple[int, int, str], None] = {}
    for code in codes.tolist():
        rest, b = divmod(code, span)
        which, a = divmod(rest, span)
        if operations[which] == "add" or a >= b:
            found[(low + a, low + b, operations[which])] = None
        if len(found) == train + held_out:
            break
    return list(found)


def worked(a: int, b: int, operation: str) -> str:
    """The steps from the last digit to the first, and the result.

    A step of a sum is digit + digit + carry; of a difference digit (plus a lent 10) - digit - borrow. Short, for every byte is a token.
    """
    steps = _sum_steps(a, b) if operation == "add" else _difference_steps(a, b)
    result = a + b if operation == "add" else a - b
    return "\n".join([*steps, f"#### {result}"])


def _digit_pairs(a: int, b: int) -> Iterator[tuple[int, int]]:
    for place in range(max(len(str(a)), len(str(b)))):
        yield a // 10**place % 10, b // 10**place % 10


def _sum_steps(a: int, b: int) -> Iterator[str]:
    carry = 0
    for x, y in _digit_pairs(a, b):
        yield f"{x}+{y}+{carry}={x + y + carry}"
        carry = (x + y + carry) // 10


def _difference_steps(a: int, b: int) -> Iterator[str]:
    borrow = 0
    for x, y in _digit_pairs(a, b):
        lent = 10 if x - y - borrow < 0 else 0
        yield f"{x + lent}-{y}-{borrow}={x + lent - y - borrow}"
        borrow = lent // 10


def pairs(
    split: str,
    *,
    flaw: Literal["bare", "wrong"] = "bare",
    operations: Sequence[str] = ("add", "subtract"),
    digits: int = 2,
    train: int = 20_000,
    held_out: int = 500,
    seed: int = 0,
) -> Iterator[dict[str, str]]:
    """The same problems as rows {"prompt", "chosen", "rejected"}; the chosen answer is the worked one.

    flaw: of the rejected answer: bare (the result without its steps) or wrong (all steps, and one wrong digit in the result).
    """
    for row in problems(split, operations=operations, digits=digits, train=train, held_out=held_out, seed=seed):
        steps, _, result = row["answer"].rpartition("#### ")
        rejected = f"#### {result}" if flaw == "bare" else f"{steps}#### {_miscounted(result)}"
        yield {"prompt": row["question"], "chosen": row["answer"], "rejected": rejected}


def stepwise(
    split: str,
    *,
    wrong: float = 0.5,
    slip: int = 5,
    operations: Sequence[str] = ("add", "subtract"),
    digits: int = 2,
    train: int = 20_000,
    held_out: int = 500,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """The same problems as rows {"prompt", "completions", "labels"}, a label for each worked step.

    wrong: share of the answers in which one step counts wrong, at a random place; that step is labelled wrong, and, as in Math-Shepherd
    (arXiv:2312.08935), so is all that follows from it. slip: the mistake is of this size to twice this size; large ones are easier to see.
    """
    rows = problems(split, operations=operations, digits=digits, train=train, held_out=held_out, seed=seed)
    random = np.random.default_rng([seed, digits, split == "val"])
    for row in rows:
        steps = row["answer"].split("\n")
        first = int(random.integers(len(steps))) if random.random() < wrong else len(steps)
        if first < len(steps):
            steps[first] = _off(steps[first], int(random.integers(slip, 2 * slip + 1)))
        yield {"prompt": row["question"], "completions": steps, "labels": [place < first for place in range(len(steps))]}


def _off(step: str, by: int) -> str:
    """A step whose number is larger by `by`, or smaller where that leaves it above zero."""
    place = max(step.rfind("="), step.rfind(" ")) + 1
    number = int(step[place:])
    return f"{step[:place]}{number - by if number >= by else number + by}"


def ratings(
    split: str,
    *,
    operations: Sequence[str] = ("add", "subtract"),
    digits: int = 2,
    train: int = 20_000,
    held_out: int = 500,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """The same problems as rows {"prompt", "response", "score"}: the share of the worked lines that an answer gives, from the first on."""
    rows = problems(split, operations=operations, digits=digits, train=train, held_out=held_out, seed=seed)
    random = np.random.default_rng([seed, digits, split == "val"])
    for row in rows:
        lines = row["answer"].split("\n")
        given = int(random.integers(1, len(lines) + 1))
        yield {"prompt": row["question"], "response": "\n".join(lines[:given]), "score": given / len(lines)}


def _miscounted(result: str) -> str:
    """Another number: the last digit is off by one to nine, which depends on the digits alone."""
    return result[:-1] + str((int(result[-1]) + 1 + int(result) % 9) % 10)


def documents(
    split: str,
    *,
    operations: Sequence[str] = ("add", "subtract"),
    digits: int = 2,
    train: int = 20_000,
    held_out: int = 500,
    seed: int = 0,
) -> Iterator[dict[str, str]]:
    """The same problems as plain text, rows {"text"}, for pretraining."""
    for row in problems(split, operations=operations, digits=digits, train=train, held_out=held_out, seed=seed):
        yield {"text": f"{row['question']}\n{row['answer']}\n"}

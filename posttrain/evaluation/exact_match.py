"""Generative exact match: decode greedily, take the final answer, compare it with the expected one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from posttrain.evaluation.generation import greedy
from posttrain.evaluation.scores import Scores, names_of
from posttrain.rewards.agreement import agrees, divided
from posttrain.rewards.answers import final_answer, same_answer
from posttrain.rewards.choices import choice_letter
from posttrain.rollout.base import Generator


class Checkable(Protocol):
    """An example with a checkable answer, as data preparation gives it."""

    @property
    def prompt_ids(self) -> np.ndarray | Sequence[int]: ...
    @property
    def prompt_text(self) -> str: ...
    @property
    def answer(self) -> str: ...
    @property
    def example_index(self) -> int: ...


@dataclass(frozen=True)
class Checked:
    """One example after the check; `extracted` is None where the completion names no answer."""

    example: int
    prompt: str
    completion: str
    expected: str
    extracted: str | None
    correct: bool


@dataclass(frozen=True)
class ExactMatch:
    """Outcome over `n` examples; `accuracy` is the share of correct ones, NaN when there is none."""

    checked: tuple[Checked, ...]

    @property
    def n(self) -> int:
        return len(self.checked)

    @property
    def accuracy(self) -> float:
        return sum(c.correct for c in self.checked) / self.n if self.checked else float("nan")

    @property
    def scores(self) -> Scores:
        """1 for each example that is answered correctly, else 0."""
        names = names_of(f"{c.prompt}\0{c.expected}" for c in self.checked)
        return Scores(names, np.array([float(c.correct) for c in self.checked]))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Rows as plain dicts, ready for samples.jsonl."""
        return [asdict(c) for c in self.checked]


def exact_match(
    generator: Generator, tokenizer: PreTrainedTokenizerBase, checkables: Sequence[Checkable], *, max_new_tokens: int
) -> ExactMatch:
    """Greedy answers to `checkables` (of this rank), checked against the expected ones. max_new_tokens: most tokens of an answer."""
    tokens = greedy(generator, [c.prompt_ids for c in checkables], max_new_tokens=max_new_tokens)
    texts = [str(tokenizer.decode(answer, skip_special_tokens=True)) for answer in tokens]
    return ExactMatch(tuple(check(c, text) for c, text in zip(checkables, texts, strict=True)))


def check(example: Checkable, completion: str) -> Checked:
    """Compare one completion with what its example expects."""
    extracted = extract(completion, expected=example.answer)
    correct = (extracted is not None and agrees(extracted, example.answer)) or (
        same_answer(completion, example.answer) and divided(completion, example.answer)
    )
    return Checked(example.example_index, example.prompt_text, completion, example.answer, extracted, correct)


def extract(completion: str, *, expected: str) -> str | None:
    """The answer in a completion: a choice letter where one is expected, else the final answer; else, where words are expected, the whole
    text if it is short."""
    wanted = expected.strip().strip("().")
    if len(wanted) == 1 and wanted.upper() in "ABCDE" and (letter := choice_letter(completion)):
        return letter
    if found := final_answer(completion):
        return found
    whole = completion.strip()
    is_short = 0 < len(whole) <= 2 * len(expected) + 16
    return whole if is_short and final_answer(expected) is None else None


def merge(parts: Iterable[ExactMatch]) -> ExactMatch:
    """The outcome of all ranks as one, in the order of the examples."""
    return ExactMatch(tuple(sorted((c for part in parts for c in part.checked), key=lambda c: c.example)))


def from_rows(rows: Iterable[Mapping[str, Any]]) -> ExactMatch:
    """The outcome that `rows` were made of (ranks exchange plain dicts)."""
    return ExactMatch(tuple(Checked(**row) for row in rows))

"""From the rewards of a prompt's answers to pairs of them, the better one first."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

Pair = tuple[int, int]
Rule = Callable[[Sequence[int], Sequence[float], Sequence[float]], list[Pair]]


@dataclass(frozen=True)
class Pairing:
    """pairs: of each group, (chosen, rejected) by number. tied: comparisons that made no pair. left_out: answers without a reward."""

    pairs: tuple[tuple[Pair, ...], ...]
    tied: int
    left_out: int


def best_worst(scored: Sequence[int], rewards: Sequence[float], draws: Sequence[float]) -> list[Pair]:
    """The best answer and the worst; the first of several equal ones."""
    return [(max(scored, key=rewards.__getitem__), min(scored, key=rewards.__getitem__))]


def every(scored: Sequence[int], rewards: Sequence[float], draws: Sequence[float]) -> list[Pair]:
    """Each answer with each other one."""
    return list(itertools.combinations(scored, 2))


def random_two(scored: Sequence[int], rewards: Sequence[float], draws: Sequence[float]) -> list[Pair]:
    """The two answers with the smallest draws (two answers a prompt: OAIF, arXiv:2402.04792, algorithm 1)."""
    first, second = sorted(scored, key=draws.__getitem__)[:2]
    return [(first, second)]


RULES: dict[str, Rule] = {"best_worst": best_worst, "all": every, "random_two": random_two}


def most_pairs(rule: str, group: int) -> int:
    """Pairs that a group of this many answers makes at most."""
    return group * (group - 1) // 2 if rule == "all" else 1


def paired(rewards: Tensor, draws: Tensor, *, rule: str, margin: float = 0.0) -> Pairing:
    """Pairs of each group. rewards: [P, G], NaN for answers that take no part. draws: [P, G], uniform numbers, for random choices.

    Answers whose rewards differ by `margin` or less make no pair. Raises KeyError for an unknown rule.
    """
    made, tied = [], 0
    for values, chances in zip(rewards.tolist(), draws.tolist(), strict=True):
        scored = [number for number, value in enumerate(values) if not math.isnan(value)]
        compared = RULES[rule](scored, values, chances) if len(scored) > 1 else []
        ordered = [(a, b) if values[a] >= values[b] else (b, a) for a, b in compared]
        made.append(tuple((a, b) for a, b in ordered if values[a] - values[b] > margin))
        tied += len(compared) - len(made[-1])
    return Pairing(tuple(made), tied, int(rewards.isnan().sum()))

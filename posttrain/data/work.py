"""What steps over tokenised examples compute on."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from posttrain.data.examples import Examples
from posttrain.data.plan import StepPlan
from posttrain.functional.attended import attended
from posttrain.types import TokenizedExample, Work


class Counted(Examples, Protocol):
    """Examples that also know how many targets each has and how many (query, key) products its attention computes, both [N]."""

    @property
    def trained(self) -> np.ndarray: ...

    @property
    def attended(self) -> np.ndarray: ...


def step_work(examples: Counted, plan: StepPlan, step: int) -> Work:
    """What optimizer step `step` (from 0) computes on, over all ranks, in the layout that holds a shared prompt once."""
    split = plan.step(step).split
    batches = [np.array(batch, np.int64) for rank in split for batch in rank]
    chosen = np.concatenate(batches)
    tokens = int(examples.lengths[chosen].sum(dtype=np.int64))
    targets = tuple(int(examples.trained[batch].sum()) for batch in batches)
    return Work(
        examples=len(chosen),
        tokens=tokens,
        computed=tokens,
        targets=float(sum(targets)),
        pairs=float(examples.attended[chosen].sum()),
        batches=targets,
    )


def attended_by(example: TokenizedExample) -> float:
    """(query, key) products of one example's attention."""
    return float(segments_attended(example.segment_lengths, example.segment_parents).sum())


def segments_attended(lengths: np.ndarray, parents: np.ndarray) -> np.ndarray:
    """The same of each segment, float64 [S]. lengths: [S]. parents: [S], -1 for a root; a parent comes before its children."""
    own = lengths.astype(np.float64)
    before = np.zeros(len(own))
    above, level = parents, np.flatnonzero(parents >= 0)
    while len(level):  # one round for each generation of ancestors
        before[level] += own[above[level]]
        above = np.where(above >= 0, parents[above], -1)
        level = np.flatnonzero(above >= 0)
    return np.asarray(attended(own, before))


def joined_parents(parents: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Parents counted from the first of many examples' segments. parents: [S], within each example. offsets: [N + 1], where each begins."""
    first = np.repeat(offsets[:-1], np.diff(offsets))
    return np.where(parents >= 0, parents + first, -1)


def sums(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Sum of each stretch [N] of values [S] between offsets [N + 1]; none may be empty."""
    return np.add.reduceat(values, offsets[:-1]) if len(offsets) > 1 else np.zeros(0)

"""Step plans: which examples an optimizer step sees, and how they are split over ranks and micro-batches.

A plan is a pure function of (seed, step): nothing is replayed to resume anywhere. The examples of a step do not depend on the number
of ranks or on `max_tokens`; only their split does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from posttrain.types import StepShare

EpochOrder = Callable[[int], np.ndarray]


@dataclass(frozen=True)
class Step:
    """One optimizer step. split: example indices as [rank][micro-batch][...], as many micro-batches on each rank as the step needs; share:
    its global denominators."""

    split: tuple[tuple[tuple[int, ...], ...], ...]
    share: StepShare


@dataclass(frozen=True)
class StepPlan:
    """The whole run's steps.

    lengths: int [N], tokens of every example's tree. weights: float [N], its summed loss weights. order: epoch -> example indices, every
    epoch of the same length. global_batch: examples a step. max_tokens: bound of one micro-batch. ranks: data-parallel world size.
    steps: number of optimizer steps; the last one may be smaller than global_batch when epochs end there (`last_batch`). ends: after how
    many examples the run ended before it was given more, rising; a step that was cut short there stays so, and the next begins there.
    micro_batches: per rank and step, the same for the whole run: as many as its largest step needs. What another does not need is empty and
    costs nothing.
    """

    lengths: np.ndarray
    weights: np.ndarray
    order: EpochOrder
    global_batch: int
    max_tokens: int
    ranks: int
    steps: int
    last_batch: int
    micro_batches: int
    ends: tuple[int, ...]
    _epoch: Callable[[int], np.ndarray] = field(repr=False)

    @property
    def words(self) -> str:
        """The plan in a line."""
        return f"{self.steps} steps of {self.global_batch} examples; micro-batches a step and device: {self.micro_batches}"

    @property
    def tokens(self) -> float:
        """Of the whole run, as many as its examples have on average."""
        return self.total * float(np.mean(self.lengths))

    @property
    def total(self) -> int:
        """Examples that the whole run sees, counted as often as it does."""
        return first_of(self.steps - 1, self.global_batch, self.ends) + self.last_batch

    def ends_at(self, step: int) -> tuple[int, ...]:
        """The `ends` of a run that is given more after `step` steps."""
        return (*self.ends, self.total) if step == self.steps and self.last_batch < self.global_batch else self.ends

    def examples(self, step: int) -> np.ndarray:
        """Indices of the examples that optimizer step `step` (from 0) sees, in order. Raises IndexError outside the plan."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} is outside the plan of {self.steps} steps")
        first = first_of(step, self.global_batch, self.ends)
        count = self.last_batch if step == self.steps - 1 else first_of(step + 1, self.global_batch, self.ends) - first
        return take(self._epoch, first, count)

    def step(self, step: int) -> Step:
        """The split of one step over ranks and micro-batches."""
        chosen = self.examples(step)
        lengths = self.lengths[chosen]
        filled = math.ceil(first_fit(lengths, self.max_tokens) / self.ranks) * self.ranks
        groups = [tuple(int(chosen[i]) for i in group) for group in balance(lengths, filled, self.max_tokens)]
        split = tuple(tuple(groups[rank :: self.ranks]) for rank in range(self.ranks))
        weight = float(self.weights[chosen].sum(dtype=np.float64))
        return Step(split, StepShare(weight, len(chosen), self.ranks * self.micro_batches, filled=filled))


def make_plan(
    lengths: np.ndarray,
    weights: np.ndarray,
    order: EpochOrder,
    *,
    global_batch: int,
    max_tokens: int,
    ranks: int = 1,
    max_steps: int | None = None,
    epochs: float | None = None,
    ends: Sequence[int] = (),
) -> StepPlan:
    """Plan a run of `max_steps` steps, or of `epochs` passes over the data. ends: as the plan has them, where the run goes on.

    Raises ValueError if neither is given, if an example is longer than max_tokens, or if there is nothing to train on.
    """
    per_epoch = len(order(0))
    if per_epoch == 0:
        raise ValueError("no examples to plan")
    if int(lengths.max()) > max_tokens:
        raise ValueError(f"the longest example has {int(lengths.max())} tokens and max_tokens is {max_tokens}")
    if max_steps is None and epochs is None:
        raise ValueError("give max_steps or epochs")
    whole = max_steps * global_batch if max_steps is not None else math.ceil(per_epoch * float(epochs or 0))
    if whole < 1:
        raise ValueError(f"{whole} examples make no step")
    total = whole if max_steps is None else first_of(max_steps, global_batch, ends)
    ends = tuple(end for end in ends if end < total)
    stretches = [(begin, math.ceil((end - begin) / global_batch)) for begin, end in zip((0, *ends), (*ends, total), strict=True)]
    steps = sum(count for _, count in stretches)
    cached = lru_cache(maxsize=2)(order)  # a step touches at most two epochs unless the data is smaller than a batch
    micro = max(_micro_batches(lengths, cached, global_batch, max_tokens, ranks, begin, count) for begin, count in stretches)
    last = total - first_of(steps - 1, global_batch, ends)
    return StepPlan(lengths, weights, order, global_batch, max_tokens, ranks, steps, last, micro, ends, cached)


def first_of(step: int, global_batch: int, ends: Sequence[int] = ()) -> int:
    """How many examples the steps before `step` saw. ends: where steps were cut short, see `StepPlan`."""
    begin = 0
    for end in ends:
        count = math.ceil((end - begin) / global_batch)
        if step < count:
            break
        step, begin = step - count, end
    return begin + step * global_batch


def take(order: EpochOrder, start: int, count: int) -> np.ndarray:
    """`count` indices from place `start` of the endless sequence order(0), order(1), ..."""
    size = len(order(0))
    pieces = []
    while count > 0:
        epoch, offset = divmod(start, size)
        piece = order(epoch)[offset : offset + count]
        pieces.append(piece)
        start, count = start + len(piece), count - len(piece)
    return np.concatenate(pieces)


def _micro_batches(lengths: np.ndarray, order: EpochOrder, global_batch: int, max_tokens: int, ranks: int, first: int, steps: int) -> int:
    """The smallest number of micro-batches per rank that holds each of `steps` steps from example `first` of the run's order on.

    First-fit leaves every bin but one fuller than max_tokens minus the longest item, which shows for most steps, without packing them,
    that they need no more than what an earlier step needed.
    """
    need, block = 1, max(1, _BLOCK // global_batch)
    for begin in range(0, steps, block):
        count = min(block, steps - begin)
        items = lengths[take(order, first + begin * global_batch, count * global_batch)].reshape(count, global_batch)
        totals, longest = items.sum(1, dtype=np.int64), items.max(1)
        bound = np.minimum(2 * totals / max_tokens, totals / np.maximum(max_tokens - longest, 1)) + 1
        for row in np.flatnonzero(bound > need * ranks):
            if bound[row] > need * ranks:  # an earlier row of the block may have raised it
                need = max(need, math.ceil(first_fit(items[row], max_tokens) / ranks))
    return need


_BLOCK = 1 << 20  # examples looked at together


def first_fit(lengths: np.ndarray, capacity: int) -> int:
    """Bins that first-fit decreasing needs for items of these lengths."""
    room: list[int] = []
    for length in np.sort(lengths)[::-1].tolist():
        for index, free in enumerate(room):
            if free >= length:
                room[index] = free - length
                break
        else:
            room.append(capacity - length)
    return len(room)


def cost(lengths: np.ndarray) -> np.ndarray:
    """Relative compute of sequences: linear layers grow with the length, attention with its square (equal at 6,144 tokens)."""
    lengths = lengths.astype(np.float64)
    return lengths + lengths**2 / 6144.0


def balance(lengths: np.ndarray, bins: int, capacity: int) -> list[list[int]]:
    """Split items into `bins` groups of similar cost within `capacity` tokens, longest first to the cheapest group with room.

    Where that greedy choice leaves an item without room, the split falls back to first-fit decreasing, which the number of bins was
    chosen for. Groups list items in their original order. Raises ValueError if the items do not fit at all.
    """
    items = np.argsort(-lengths, kind="stable").tolist()
    for rule in (_cheapest, _first):
        groups: list[list[int]] = [[] for _ in range(bins)]
        loads, tokens, costs = [0.0] * bins, [0] * bins, cost(lengths)
        for item in items:
            size = int(lengths[item])
            chosen = rule(loads, tokens, size, capacity)
            if chosen is None:
                break
            groups[chosen].append(item)
            loads[chosen] += float(costs[item])
            tokens[chosen] += size
        else:
            return [sorted(group) for group in groups]
    raise ValueError(f"{int(lengths.sum())} tokens do not fit into {bins} micro-batches of {capacity}")


def _cheapest(loads: Sequence[float], tokens: Sequence[int], size: int, capacity: int) -> int | None:
    fitting = [index for index in range(len(loads)) if tokens[index] + size <= capacity]
    return min(fitting, key=lambda index: loads[index]) if fitting else None


def _first(loads: Sequence[float], tokens: Sequence[int], size: int, capacity: int) -> int | None:
    return next((index for index in range(len(loads)) if tokens[index] + size <= capacity), None)

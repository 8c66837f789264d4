"""When an online run samples, and what each of its optimizer steps sees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np

from posttrain.data.plan import EpochOrder, balance, first_fit, take
from posttrain.data.tree import answered, collate, ghost, nothing
from posttrain.errors import ConfigError, Problem
from posttrain.types import Group, Part, Rollout, StepShare, TokenizedExample, TokenTree


@dataclass(frozen=True)
class ExperiencePlan:
    """The steps of an online run.

    A rollout samples `group_size` answers to each of `minibatches * global_batch` prompts, then `epochs` passes over them make
    `minibatches` optimizer steps each. order: epoch of the data -> prompt numbers. ranks: data-parallel world size. max_tokens: bound of a
    micro-batch. micro_batches: per rank and step, the same for the whole run: enough for the longest answers; what a step does not need is
    empty and costs nothing.
    """

    order: EpochOrder
    group_size: int
    global_batch: int
    minibatches: int
    epochs: int
    steps: int
    ranks: int
    max_tokens: int
    micro_batches: int
    seed: int

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps between two rollouts."""
        return self.minibatches * self.epochs

    @property
    def prompts(self) -> int:
        """Of a rollout."""
        return self.minibatches * self.global_batch

    @property
    def answers(self) -> float:
        """That the whole run samples."""
        return self.steps / self.steps_per_rollout * self.prompts * self.group_size

    @property
    def words(self) -> str:
        """The plan in a line."""
        often = "every step" if self.steps_per_rollout == 1 else f"every {self.steps_per_rollout} steps"
        return f"{self.steps} steps of {self.global_batch} prompts; {often} {self.group_size} answers to each of {self.prompts} prompts"

    def ends_at(self, step: int) -> tuple[int, ...]:
        """Nowhere: every step sees a whole rollout's share."""
        return ()

    def prompt_at(self, place: int) -> int:
        """The prompt number at a place of the run's endless order."""
        return int(take(self.order, place, 1)[0])

    def chosen(self, step: int, groups: int) -> list[int]:
        """Which of a rollout's `groups` groups optimizer step `step` (from 0) sees: shuffled anew for each pass."""
        number, inner = divmod(step, self.steps_per_rollout)
        epoch, minibatch = divmod(inner, self.minibatches)
        shuffled = np.random.default_rng([self.seed, number, epoch]).permutation(groups)
        return sorted(np.array_split(shuffled, self.minibatches)[minibatch].tolist())

    def split(self, parts: Sequence[Part], rank: int, spare: TokenizedExample) -> list[TokenTree]:
        """A rank's micro-batches of a step that sees `parts`, the empty ones first. spare: what a rank without work runs.

        Raises ConfigError where the parts were cut for another plan, and do not fit into this one.
        """
        lengths, filled = self._filled(parts)
        if lengths.max(initial=0) > self.max_tokens or filled > self.ranks * self.micro_batches:
            message = f"the checkpoint is in the middle of a rollout, whose parts do not fit into {self.max_tokens} tokens"
            raise ConfigError(Problem("max_tokens", message, "continue with the max_tokens it had, at least to the rollout's end"))
        share = StepShare(
            weight=float(sum(part.tree.weights.sum(dtype=np.float64) for part in parts)),
            examples=len({part.group for part in parts}),
            parts=self.ranks * self.micro_batches,
            sequences=sum(len(part.tree.marks) for part in parts),
            filled=filled,
        )
        bins = self.batches(parts)[rank :: self.ranks]
        trees = [collate([parts[place].tree for place in places] or [ghost(spare)], share) for places in bins]
        return [nothing(share, list(spare.columns))] * (self.micro_batches - len(trees)) + trees

    def batches(self, parts: Sequence[Part]) -> list[list[int]]:
        """Which parts each micro-batch of a step holds, over all ranks, without the empty ones."""
        lengths, filled = self._filled(parts)
        return balance(lengths, filled, self.max_tokens)

    def _filled(self, parts: Sequence[Part]) -> tuple[np.ndarray, int]:
        """Tokens of each part, and the number of micro-batches that hold them, over all ranks."""
        lengths = np.array([len(part.tree.ids) for part in parts], np.int64)
        return lengths, max(1, math.ceil(first_fit(lengths, self.max_tokens) / self.ranks)) * self.ranks


def make_experience_plan(
    order: EpochOrder,
    *,
    longest_prompt: int,
    group_size: int,
    max_new_tokens: int,
    global_batch: int,
    minibatches: int,
    rollout_epochs: int,
    max_tokens: int,
    ranks: int,
    max_steps: int | None,
    epochs: float | None,
    seed: int,
    pairs: int | None = None,
) -> ExperiencePlan:
    """Plan an online run of `max_steps` optimizer steps, or of `epochs` passes over the prompts.

    pairs: most pairs that a group makes, where the loss reads answers in pairs; None where it reads each by itself.
    Raises ValueError if neither is given, there are no prompts, or a prompt with one answer (one pair) may not fit into max_tokens.
    """
    together, what = (max_new_tokens, "an answer") if pairs is None else (2 * max_new_tokens, "a pair of answers")
    if longest_prompt + together > max_tokens:
        raise ValueError(
            f"a prompt has up to {longest_prompt} tokens and {what} up to {together}, which is more than max_tokens={max_tokens}"
        )
    order = lru_cache(maxsize=2)(order)  # prompts are asked for one by one
    if not len(order(0)):
        raise ValueError("there are no prompts")
    if max_steps is None and epochs is None:
        raise ValueError("give max_steps or epochs")
    per_rollout = minibatches * rollout_epochs
    rollouts = math.ceil(len(order(0)) * float(epochs or 0) / (minibatches * global_batch))
    steps = max_steps if max_steps is not None else rollouts * per_rollout
    size = _group_tokens if pairs is None else partial(_paired_tokens, pairs=pairs)
    most = global_batch * size(longest_prompt, group_size, max_new_tokens, max_tokens)
    micro = math.ceil((2 * most / max_tokens + 1) / ranks)  # no micro-batch but one is less than half full (first fit)
    micro = 1 << (micro - 1).bit_length()  # a power of two: multiplying and dividing by it is exact
    return ExperiencePlan(order, group_size, global_batch, minibatches, rollout_epochs, steps, ranks, max_tokens, micro, seed)


def _group_tokens(prompt: int, group: int, answer: int, max_tokens: int) -> int:
    """Most tokens of a group's trees: no part of it but one is less than half full."""
    pieces = math.ceil(2 * group * answer / (max_tokens - prompt)) + 1
    return min(pieces, group) * prompt + group * answer


def _paired_tokens(prompt: int, group: int, answer: int, max_tokens: int, *, pairs: int) -> int:
    """The same where answers are read in pairs: one tree where all of them fit, else at most one for each pair."""
    whole = prompt + min(group, 2 * pairs) * answer
    return whole if whole <= max_tokens else pairs * (prompt + 2 * answer)


Unit = tuple[int, ...]


def parts_of(rollout: Rollout, max_tokens: int, units: Sequence[Sequence[Unit]] | None = None) -> list[Part]:
    """The answers that the loss reads as trees of at most max_tokens tokens, with the sampler's log-probabilities as columns.

    units: of each group, the answers that are read together and must share a tree; an answer that a tree's units name twice is in it once.
    None: every kept answer is read by itself.
    """
    read = each_alone(rollout.kept) if units is None else units
    return [
        part
        for number, (group, own) in enumerate(zip(rollout.groups, read, strict=True))
        for part in _parts(group, number, own, max_tokens)
    ]


def each_alone(kept: np.ndarray) -> list[list[Unit]]:
    """Every kept answer, bool [P, G], as a unit of its own."""
    return [[(int(answer),) for answer in np.flatnonzero(own)] for own in kept]


def _parts(group: Group, number: int, units: Sequence[Unit], max_tokens: int) -> list[Part]:
    sizes = [len(completion.tokens) for completion in group.completions]
    units = [unit for unit in units if all(sizes[answer] for answer in unit)]
    return [_part(group, number, piece) for piece in _pieces(units, sizes, max_tokens - len(group.prompt))]


def _pieces(units: Sequence[Unit], sizes: Sequence[int], room: int) -> list[list[Unit]]:
    """The units in pieces whose answers have at most `room` tokens: evenly where no two share an answer, else in order, as many as fit."""
    named = [answer for unit in units for answer in unit]
    if len(named) == len(set(named)):
        lengths = np.array([sum(sizes[answer] for answer in unit) for unit in units], np.int64)
        pieces = balance(lengths, first_fit(lengths, room), room) if units else []
        return [[units[place] for place in piece] for piece in pieces]
    made: list[list[Unit]] = [[]]
    for unit in units:
        answers = {answer for other in (*made[-1], unit) for answer in other}
        if made[-1] and sum(sizes[answer] for answer in answers) > room:
            made.append([])
        made[-1].append(unit)
    return made


def _part(group: Group, number: int, units: Sequence[Unit]) -> Part:
    read = [answer for unit in units for answer in unit]
    answers = tuple(dict.fromkeys(read))
    some = [group.completions[answer] for answer in answers]
    columns = {"sampler": [completion.logps for completion in some]}
    if all(completion.drawn is not None for completion in some):
        columns["drawn"] = [completion.drawn for completion in some if completion.drawn is not None]
    tree = answered(group.prompt, [completion.tokens for completion in some], columns)
    if len(read) > len(answers):
        ends = dict(zip(answers, tree.marks.tolist(), strict=True))
        tree = replace(tree, marks=np.array([ends[answer] for answer in read], np.int32), values=np.full(len(read), np.nan, np.float32))
    return Part(number, answers, tree)

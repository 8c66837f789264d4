"""When an online run samples, and what each of its optimizer steps sees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from posttrain.data.plan import EpochOrder, balance, first_fit, take
from posttrain.data.tree import answered, collate, ghost, nothing
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
    def words(self) -> str:
        """The plan in a line."""
        often = "every step" if self.steps_per_rollout == 1 else f"every {self.steps_per_rollout} steps"
        return f"{self.steps} steps of {self.global_batch} prompts; {often} {self.group_size} answers to each of {self.prompts} prompts"

    def indices(self, first: int, count: int) -> np.ndarray:
        """`count` prompt numbers from place `first` of the run's endless order."""
        return take(self.order, first, count)

    def chosen(self, step: int, groups: int) -> list[int]:
        """Which of a rollout's `groups` groups optimizer step `step` (from 0) sees: shuffled anew for each pass."""
        number, inner = divmod(step, self.steps_per_rollout)
        epoch, minibatch = divmod(inner, self.minibatches)
        shuffled = np.random.default_rng([self.seed, number, epoch]).permutation(groups)
        return sorted(np.array_split(shuffled, self.minibatches)[minibatch].tolist())

    def split(self, parts: Sequence[Part], rank: int, spare: TokenizedExample) -> list[TokenTree]:
        """A rank's micro-batches of a step that sees `parts`, the empty ones first. spare: what a rank without work runs."""
        lengths = np.array([len(part.tree.ids) for part in parts], np.int64)
        filled = max(1, math.ceil(first_fit(lengths, self.max_tokens) / self.ranks)) * self.ranks
        share = StepShare(
            weight=float(sum(part.tree.weights.sum(dtype=np.float64) for part in parts)),
            examples=len({part.group for part in parts}),
            parts=self.ranks * self.micro_batches,
            sequences=sum(len(part.answers) for part in parts),
            filled=filled,
        )
        bins = balance(lengths, filled, self.max_tokens)[rank :: self.ranks]
        trees = [collate([parts[place].tree for place in places] or [ghost(spare)], share) for places in bins]
        return [nothing(share, list(spare.columns))] * (self.micro_batches - len(trees)) + trees


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
) -> ExperiencePlan:
    """Plan an online run of `max_steps` optimizer steps, or of `epochs` passes over the prompts.

    Raises ValueError if neither is given, there are no prompts, or a prompt with one answer may not fit into max_tokens.
    """
    if longest_prompt + max_new_tokens > max_tokens:
        raise ValueError(
            f"a prompt has up to {longest_prompt} tokens and an answer up to {max_new_tokens}, which is more than max_tokens={max_tokens}"
        )
    if not len(order(0)):
        raise ValueError("there are no prompts")
    if max_steps is None and epochs is None:
        raise ValueError("give max_steps or epochs")
    per_rollout = minibatches * rollout_epochs
    rollouts = math.ceil(len(order(0)) * float(epochs or 0) / (minibatches * global_batch))
    steps = max_steps if max_steps is not None else rollouts * per_rollout
    # no micro-batch but one is less than half full (first fit), and no part of a group but one
    pieces = math.ceil(2 * group_size * max_new_tokens / (max_tokens - longest_prompt)) + 1
    most = global_batch * (min(pieces, group_size) * longest_prompt + group_size * max_new_tokens)
    micro = math.ceil((2 * most / max_tokens + 1) / ranks)
    micro = 1 << (micro - 1).bit_length()  # a power of two: multiplying and dividing by it is exact
    return ExperiencePlan(order, group_size, global_batch, minibatches, rollout_epochs, steps, ranks, max_tokens, micro, seed)


def parts_of(rollout: Rollout, max_tokens: int) -> list[Part]:
    """The kept answers of every group as trees of at most max_tokens tokens, with the sampler's log-probabilities as column `sampler`."""
    return [part for number, group in enumerate(rollout.groups) for part in _parts(group, number, rollout.kept[number], max_tokens)]


def _parts(group: Group, number: int, kept: np.ndarray, max_tokens: int) -> list[Part]:
    answers = [int(place) for place in np.flatnonzero(kept) if len(group.completions[place].tokens)]
    lengths = np.array([len(group.completions[place].tokens) for place in answers], np.int64)
    room = max_tokens - len(group.prompt)
    pieces = balance(lengths, first_fit(lengths, room), room) if answers else []
    return [_part(group, number, tuple(answers[place] for place in piece)) for piece in pieces]


def _part(group: Group, number: int, answers: tuple[int, ...]) -> Part:
    some = [group.completions[place] for place in answers]
    tree = answered(group.prompt, [completion.tokens for completion in some], {"sampler": [completion.logps for completion in some]})
    return Part(number, answers, tree)

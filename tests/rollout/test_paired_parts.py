"""Answers that are read in pairs share a tree, in which each is held once."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from posttrain.data.tree import collate
from posttrain.functional.pairs import pair_logps
from posttrain.rollout.plan import ExperiencePlan, make_experience_plan, parts_of
from posttrain.types import Completion, Group, GroupRewards, Rollout, StepShare

PROMPT = np.arange(5, dtype=np.int32)


def rollout(lengths: list[int], groups: int = 1) -> Rollout:
    answers = tuple(Completion(np.full(n, 10 + i, np.int32), np.full(n, -float(i), np.float32), "stop") for i, n in enumerate(lengths))
    shape = (groups, len(lengths))
    rewards = GroupRewards(torch.zeros(shape), torch.zeros(1, *shape), torch.ones(1))
    return Rollout(0, tuple(Group(i, PROMPT, answers) for i in range(groups)), rewards, np.ones(shape, bool))


def read(part) -> list[tuple[int, int]]:
    """The pairs of a part, by the tokens at its marks."""
    ids = part.tree.ids[part.tree.marks].reshape(-1, 2) - 10
    return [tuple(row) for row in ids.tolist()]


def test_an_answer_in_several_pairs_is_held_once() -> None:
    pairs = [(2, 0), (2, 1), (0, 1)]
    (part,) = parts_of(rollout([3, 4, 5]), 100, [pairs])
    assert read(part) == pairs
    assert part.answers == (2, 0, 1)
    assert len(part.tree.ids) == 5 + 3 + 4 + 5
    tree = collate([part.tree], StepShare(12.0, 1, 1, 6))
    sums = pair_logps(tree.columns["sampler"], None, tree)
    assert sums.chosen.tolist() == [-10, -10, 0]
    assert sums.rejected.tolist() == [0, -4, -4]
    assert sums.chosen_length.tolist() == [5, 5, 3]


@pytest.mark.parametrize("room", [10, 13, 20, 30, 100])
def test_every_pair_is_in_one_part_that_fits(room: int) -> None:
    lengths = [5, 3, 4, 5, 2, 1]
    for pairs in (list(combinations(range(6), 2)), [(5, 0), (1, 2), (4, 3)], [(0, 5)], []):
        parts = parts_of(rollout(lengths), 5 + room, [pairs])
        assert sorted(pair for part in parts for pair in read(part)) == sorted(pairs)
        assert all(len(part.tree.ids) <= 5 + room for part in parts)
        assert all(len(set(part.answers)) == len(part.answers) for part in parts)


def plan(max_tokens: int, pairs: int | None, group: int) -> ExperiencePlan:
    return make_experience_plan(
        lambda _: np.arange(10), longest_prompt=5, group_size=group, max_new_tokens=6, global_batch=4, minibatches=1, rollout_epochs=1,
        max_tokens=max_tokens, ranks=1, max_steps=3, epochs=None, seed=0, pairs=pairs,
    )  # fmt: skip


@pytest.mark.parametrize("max_tokens", [17, 18, 24, 29, 41, 60, 1000])
@pytest.mark.parametrize("rule", ["best_worst", "all"])
def test_the_planned_micro_batches_suffice_for_the_longest_answers(max_tokens: int, rule: str) -> None:
    pairs = [(0, 5)] if rule == "best_worst" else list(combinations(range(6), 2))
    made = plan(max_tokens, len(pairs), 6)
    long = rollout([6] * 6, groups=4)
    parts = parts_of(long, max_tokens, [pairs] * 4)
    trees = made.split(parts, 0, parts[0].tree)
    assert len(trees) == made.micro_batches
    assert {tree.share.sequences for tree in trees} == {2 * 4 * len(pairs)}


def test_a_pair_must_fit_into_a_micro_batch() -> None:
    with pytest.raises(ValueError, match="a pair of answers up to 12"):
        plan(16, 1, 6)
    assert plan(16, None, 6)

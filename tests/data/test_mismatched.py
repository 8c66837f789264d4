"""Prompts with the answers to other prompts."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from posttrain.data.loader import TreeLoader
from posttrain.data.mismatched import Mismatched, answer_start
from posttrain.data.tree import tree_of


class Kept:
    """Examples of (prompt, answer), tokens each."""

    def __init__(self, *rows: tuple[list[int], list[int]], values: list[float] | None = None):
        self.rows, self.values = rows, values or [1.0] * len(rows)

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(prompt) + len(answer) for prompt, answer in self.rows])

    @property
    def targets(self) -> np.ndarray:
        return np.array([len(answer) for _, answer in self.rows])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int):
        prompt, answer = self.rows[index]
        weights = np.array([0.0] * len(prompt) + [1.0] * len(answer))
        return tree_of([(np.array(prompt + answer), weights)], [self.values[index]])


FOUR = Kept(([1, 2], [11, 12]), ([3], [13]), ([4, 5, 6], [14, 15]), ([7], [16, 17, 18]))


def test_the_answer_is_of_the_example_half_a_set_further_on():
    got = [Mismatched(FOUR)[place] for place in range(4)]
    assert [example.ids.tolist() for example in got] == [[1, 2, 14, 15], [3, 16, 17, 18], [4, 5, 6, 11, 12], [7, 13]]
    assert [example.weights.tolist() for example in got] == [[0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 0, 1, 1], [0, 1]]
    # the last token is marked, and nothing is said of it
    assert [example.marks.tolist() for example in got] == [[3], [3], [4], [1]]
    assert all(np.isnan(example.values).all() and example.reference is None for example in got)
    assert all(len(example.segment_lengths) == 1 for example in got)


def test_nothing_is_longer_than_the_longest_example():
    long = Kept(([1, 2, 3, 4], [11]), ([5], [12, 13, 14, 15]))
    assert [example.ids.tolist() for example in (Mismatched(long)[0], Mismatched(long)[1])] == [[1, 2, 3, 4, 12], [5, 11]]
    assert Mismatched(long)[0].marks.tolist() == [4]


def test_it_is_as_large_as_the_examples():
    view = Mismatched(FOUR)
    assert len(view) == 4
    assert (view.lengths.tolist(), view.targets.tolist()) == ([4, 2, 5, 4], [2, 1, 2, 3])


def test_an_answer_to_the_same_prompt_is_passed_over():
    # all desirable answers, then the undesirable ones to the same prompts
    halves = Kept(([1], [11]), ([2], [12]), ([3], [13]), ([1], [14]), ([2], [15]), ([3], [16]))
    assert [Mismatched(halves)[place].ids.tolist() for place in range(6)] == [[1, 15], [2, 16], [3, 11], [1, 12], [2, 13], [3, 14]]


@pytest.mark.parametrize("ends", [([9], [99]), ([9, 9], [99])])
def test_another_prompt_is_found_however_far_it_is(ends):
    """Hundreds of answers to one prompt, and a single one to another."""
    many = Kept(*(([1, 2], [10 + place]) for place in range(300)), ends)
    view = Mismatched(many)
    assert all(view[place].ids.tolist() == [1, 2, 99] for place in range(300))
    assert view[300].ids[: len(ends[0])].tolist() == ends[0]
    assert view.partner(300) == (300 + 150) % 301


def test_what_is_looked_at_is_read_once(monkeypatch):
    many = Kept(*(([1, 2], [10 + place]) for place in range(300)), ([9], [99]))
    read = []
    plain = Kept.__getitem__
    monkeypatch.setattr(Kept, "__getitem__", lambda self, index: (read.append(index), plain(self, index))[1])
    view = Mismatched(many)
    for place in range(50):
        view.partner(place)
    assert len(read) == len(set(read))


@pytest.mark.parametrize("count", [1, 2, 40])
def test_examples_of_one_prompt_alone_are_told(count: int, caplog):
    same = Mismatched(Kept(*(([1, 2], [10 + place]) for place in range(count))))
    found = [same[place].ids.tolist() for place in range(count)]
    assert [ids[2] for ids in found] == [10 + (place + max(1, count // 2)) % count for place in range(count)]
    assert [record.message.split(":")[0] for record in caplog.records] == [f"all {count} examples have the same prompt"]


def test_a_prompt_that_truncation_left_one_token_of():
    assert answer_start(FOUR[1]) == 1
    assert Mismatched(Kept(([1], [11, 12]), ([2], [13])))[0].ids.tolist() == [1, 13]


def test_a_step_is_read_with_other_answers():
    class Plan:
        ranks, micro_batches, steps, max_tokens = 1, 2, 1, 8

        def step(self, number: int):
            class Step:
                split, share = [[[2], [0, 1]]], None

            return Step

    loader = TreeLoader(FOUR, Plan())
    plain = [tree.ids.tolist() for tree in loader.step_trees(0)]
    # split anew: with other answers the trees have other lengths, and max_tokens still holds
    other = [tree.ids.tolist() for tree in loader.step_trees(0, mismatched=True)]
    assert plain == [[4, 5, 6, 14, 15], [1, 2, 11, 12, 3, 13]]
    assert sorted(other, key=len) == [[4, 5, 6, 11, 12], [1, 2, 14, 15, 3, 16, 17, 18]]


@pytest.mark.parametrize("split", [[[[0], [1], [2]], [[3], [], []]], [[[], []], [[0, 1], [2, 3]]]])
def test_every_rank_reads_a_step_in_as_many_trees(split):
    """A rank whose answers need fewer, or that has none at all, runs the model on one token instead."""

    class Plan:
        ranks, micro_batches, steps, max_tokens = 2, len(split[0]), 1, 5

        def step(self, number: int):
            return SimpleNamespace(split=split, share=None)

    trees = [list(TreeLoader(FOUR, Plan(), rank=rank).step_trees(0, mismatched=True)) for rank in (0, 1)]
    assert len(trees[0]) == len(trees[1]) > 1
    assert sum(len(tree.mark) for some in trees for tree in some) == 4
    assert all(len(tree.ids) <= 5 for some in trees for tree in some)
    assert any(len(tree.ids) == 1 and len(tree.target) == 0 for some in trees for tree in some)


def test_lengths_are_known_without_making_the_examples():
    for view in (Mismatched(FOUR), Mismatched(Kept(([1, 2, 3, 4], [11]), ([5], [12, 13, 14, 15])))):
        assert [view.length(place) for place in range(len(view))] == [len(view[place].ids) for place in range(len(view))]

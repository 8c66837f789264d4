"""A rank's micro-batches: as many a step as the largest step needs, those that a step does not need empty and first."""

import numpy as np
import pytest
from test_mismatched import Kept

from posttrain.data.loader import TreeLoader
from posttrain.data.plan import make_plan

EXAMPLES = Kept(*(([1] * size, [2]) for size in (3, 3, 7, 7)))  # trees of 4, 4, 8 and 8 tokens


def loader(ranks=1, rank=0, max_tokens=8, **state):
    """Two steps of two examples: the first fits into one micro-batch, the second needs two."""
    lengths = np.array(EXAMPLES.lengths)
    plan = make_plan(lengths, np.ones(4), lambda epoch: np.arange(4), global_batch=2, max_tokens=max_tokens, ranks=ranks, max_steps=2)
    made = TreeLoader(EXAMPLES, plan, rank=rank)
    made.load_state_dict({"given": 0} | state)
    return made


def test_what_a_step_does_not_need_is_empty_and_first():
    made = loader()
    trees = list(made)
    assert made.micro_batches == 2
    assert len(made) == len(trees) == 4
    assert [len(tree.ids) for tree in trees] == [0, 8, 8, 8]
    assert [(tree.share.parts, tree.share.filled) for tree in trees] == [(2, 1), (2, 1), (2, 2), (2, 2)]
    assert [len(list(made.step_trees(step))) for step in (0, 1)] == [1, 2]


@pytest.mark.parametrize("given", range(5))
def test_it_goes_on_at_any_place(given):
    made = loader(given=given)
    assert [len(tree.ids) for tree in made] == [0, 8, 8, 8][given:]
    assert made.given == 4


def test_all_ranks_have_as_many():
    for rank in (0, 1):
        assert [len(tree.ids) for tree in loader(ranks=2, rank=rank)] == [4, 8]
    wide = [[len(tree.ids) for tree in loader(ranks=3, rank=rank)] for rank in range(3)]
    assert sorted(wide) == [[1, 1], [4, 8], [4, 8]]  # a rank without work runs one token

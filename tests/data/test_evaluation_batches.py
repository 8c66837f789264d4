"""Which held-out examples are evaluated, and in which micro-batches."""

from __future__ import annotations

import numpy as np
import pytest
from test_mismatched import Kept

from posttrain.data.loader import EvaluationBatches


def rows(count: int, *, answer: int = 1) -> Kept:
    return Kept(*(([place], [100 + place] * answer) for place in range(count)))


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_limit_leaves_examples_from_all_over_the_set(ranks: int) -> None:
    parts = [EvaluationBatches(rows(40), max_tokens=6, rank=rank, ranks=ranks, limit=10) for rank in range(ranks)]
    seen = sorted(index for part in parts for group in part.groups for index in group)
    assert len(seen) == 10
    assert seen[0] == 0
    assert max(np.diff([*seen, 40])) <= 8  # the later sources of a mixture, too
    assert [part.share.examples for part in parts] == [10] * ranks
    assert sorted(int(tree.ids[0]) for part in parts for tree in part) == sorted(group[0] for part in parts for group in part.groups)


def test_an_example_longer_than_max_tokens_is_alone() -> None:
    examples = Kept(([1], [11] * 9), ([2], [12]), ([3], [13]), ([4], [14] * 7))
    batches = EvaluationBatches(examples, max_tokens=5)
    assert sorted(batches.groups) == [[0], [1, 2], [3]]
    assert sorted(len(tree.ids) for tree in batches) == [4, 8, 10]

"""A row cut into stretches holds everything once."""

import numpy as np
import pytest
import torch
from torch.distributed.tensor.experimental._attention import _HeadTailLoadBalancer

from posttrain.data.stretch import WHOLE, stretch_of
from posttrain.data.tree import collate, ghost, tree_of
from posttrain.functional.cuts import places_of
from posttrain.types import StepShare, Stretch


def example(*sequences):
    return tree_of([(np.array(ids), np.array([0.0, *weights])) for ids, weights in sequences])


ROW = [example(([5, 6, 7, 8], [0, 1, 1]), ([5, 6, 9], [0, 2])), example(([1, 2, 3, 4], [0.5, 0, 1]))]


@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_stretches_hold_every_token_and_target_once(size):
    whole = collate(ROW, StepShare(6.0, 2, 5, filled=3))
    parts = [stretch_of(whole, Stretch(rank, size)) for rank in range(size)]
    length = -(-len(whole.ids) // size)
    assert {len(part.ids) for part in parts} == {length}
    assert torch.equal(torch.cat([part.ids for part in parts])[: len(whole.ids)], whole.ids)
    assert torch.equal(torch.cat([part.positions for part in parts])[: len(whole.ids)], whole.positions)
    found = [(int(s) + rank * length, int(t), float(w)) for rank, p in enumerate(parts) for s, t, w in zip(p.source, p.target, p.weight)]  # noqa: B905
    assert sorted(found) == sorted(zip(whole.source.tolist(), whole.target.tolist(), whole.weight.tolist(), strict=True))
    for part in parts:
        assert int(part.segments[-1, 1]) == length * size
        assert torch.equal(part.segments[: len(whole.segments)], whole.segments)
        assert (part.share.parts, part.share.filled, part.share.weight) == (5 * size, 3 * size, 6.0)
        assert len(part.example) == len(part.segments)


def test_a_row_shorter_than_its_stretches_is_filled_up():
    parts = [stretch_of(collate([ghost(ROW[0])], StepShare(1.0, 1, 1)), Stretch(rank, 3)) for rank in range(3)]
    assert [len(part.ids) for part in parts] == [1, 1, 1]
    assert all(len(part.target) == 0 for part in parts)


def test_pieces_from_both_ends_are_those_of_pytorchs_load_balancer():
    whole, tokens = collate(ROW, StepShare(6.0, 2, 5)), 24
    parts = [stretch_of(whole, Stretch(rank, 3, pieces=2, block=4)) for rank in range(3)]
    order = _HeadTailLoadBalancer(tokens, 3, "cpu")._generate_indices()[0].long()
    filled = torch.cat([whole.ids, whole.ids[:1].expand(tokens - len(whole.ids))])
    assert torch.equal(torch.cat([part.ids for part in parts]), filled[order])
    found = [(int(order[8 * rank + int(s)]), int(t)) for rank, p in enumerate(parts) for s, t in zip(p.source, p.target, strict=True)]
    assert sorted(found) == sorted(zip(whole.source.tolist(), whole.target.tolist(), strict=True))
    with pytest.raises(ValueError, match="whole blocks of 4"):
        places_of(parts[0].stretch, 36)


def test_a_whole_row_is_left_as_it_is():
    whole = collate(ROW, StepShare(6.0, 2, 5))
    assert stretch_of(whole, WHOLE) is whole

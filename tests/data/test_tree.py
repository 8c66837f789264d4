import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data.tree import collate, ghost, to_device, tree_of
from posttrain.types import StepShare

SHARE = StepShare(1.0, 1, 1)


def seq(ids, weights):
    return np.array(ids, np.int32), np.array(weights, np.float32)


def test_one_sequence_is_one_segment_and_its_first_token_no_target():
    example = tree_of([seq([5, 6, 7], [1, 1, 1])])
    assert example.ids.tolist() == [5, 6, 7]
    assert example.weights.tolist() == [0, 1, 1]
    assert example.segment_lengths.tolist() == [3]
    assert example.segment_parents.tolist() == [-1]


def test_shared_prompt_is_held_once():
    example = tree_of([seq([1, 2, 3, 4], [0, 0, 1, 1]), seq([1, 2, 5], [0, 0, 1])])
    assert example.ids.tolist() == [1, 2, 3, 4, 5]
    assert example.segment_lengths.tolist() == [2, 2, 1]
    assert example.segment_parents.tolist() == [-1, 0, 0]


def test_trained_tokens_are_never_shared():
    example = tree_of([seq([1, 2, 3], [0, 1, 1]), seq([1, 2, 4], [0, 1, 1])])
    assert example.weights.sum() == 4
    assert example.segment_lengths.tolist() == [1, 2, 2]


def test_collate_by_hand():
    pair = tree_of([seq([1, 2, 3, 4], [0, 0, 1, 2]), seq([1, 2, 5], [0, 0, 1])])
    tree = collate([pair, tree_of([seq([9, 8], [1, 1])])], SHARE)
    assert tree.ids.tolist() == [1, 2, 3, 4, 5, 9, 8]
    assert tree.positions.tolist() == [0, 1, 2, 3, 2, 0, 1]
    assert tree.segments.tolist() == [[0, 2, -1], [2, 4, 0], [4, 5, 0], [5, 7, -1]]
    assert tree.source.tolist() == [1, 2, 1, 5]
    assert tree.target.tolist() == [3, 4, 5, 8]
    assert tree.segment.tolist() == [1, 1, 2, 3]
    assert tree.weight.tolist() == [1, 2, 1, 1]
    assert tree.example.tolist() == [0, 0, 0, 1]


def test_deep_trees_continue_positions():
    example = tree_of([seq([1, 2, 3], [0, 0, 1]), seq([1, 2, 4, 5], [0, 0, 0, 1]), seq([1, 2, 4, 6], [0, 0, 0, 1])])
    tree = collate([example], SHARE)
    assert tree.positions[[0, 1]].tolist() == [0, 1]
    by_token = dict(zip(tree.ids.tolist(), tree.positions.tolist(), strict=True))
    assert by_token == {1: 0, 2: 1, 3: 2, 4: 2, 5: 3, 6: 3}


def test_ghost_has_no_targets():
    tree = collate([ghost(tree_of([seq([3, 4], [0, 1])]))], SHARE)
    assert tree.ids.tolist() == [3]
    assert tree.target.numel() == 0


@pytest.mark.parametrize("bad", [[], [seq([], [])], [seq([1], [1, 1])]])
def test_bad_sequences(bad):
    with pytest.raises(ValueError, match="sequence"):
        tree_of(bad)


def test_empty_micro_batch():
    with pytest.raises(ValueError, match="at least one"):
        collate([], SHARE)


def test_to_device_keeps_host_fields():
    tree = collate([tree_of([seq([3, 4], [0, 1])])], SHARE)
    moved = to_device(tree, torch.device("meta"))
    assert moved.ids.device.type == "meta"
    assert moved.segments.device.type == "cpu"


def paths(example):
    ends = np.cumsum(example.segment_lengths)
    starts = ends - example.segment_lengths
    leaves = set(range(len(ends))) - set(example.segment_parents.tolist())
    for leaf in leaves:
        chain = [leaf]
        while example.segment_parents[chain[-1]] >= 0:
            chain.append(int(example.segment_parents[chain[-1]]))
        places = np.concatenate([np.arange(starts[s], ends[s]) for s in chain[::-1]])
        yield tuple(example.ids[places].tolist())


sequences = st.lists(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 0.0, 1.0])), min_size=1, max_size=8), min_size=1, max_size=5
)


@given(sequences)
@settings(max_examples=200, deadline=None)
def test_nothing_is_lost_whatever_the_sequences(rows):
    given_rows = [seq([i for i, _ in row], [w for _, w in row]) for row in rows]
    example = tree_of(given_rows)
    kept = set(paths(example))
    # every sequence is a path from the root (or the beginning of one, where another continues it)
    for ids, _ in given_rows:
        assert any(path[: len(ids)] == tuple(ids.tolist()) for path in kept)
    trained = sum(float(w[1:].sum()) for _, w in given_rows)
    assert float(example.weights.sum()) == pytest.approx(trained)
    tree = collate([example], SHARE)
    assert float(tree.weight.sum()) == pytest.approx(trained)

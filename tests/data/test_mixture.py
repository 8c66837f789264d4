"""Epoch orders: permutations, shares in every prefix, exhaustion, seeds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data.mixture import epoch_counts, epoch_order
from posttrain.data.split import split


def test_one_source_is_a_permutation_that_changes_with_seed_and_epoch():
    orders = [epoch_order([100], seed=seed, epoch=epoch) for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert all(sorted(order.tolist()) == list(range(100)) for order in orders)
    assert orders[0].tolist() == orders[1].tolist()
    assert orders[0].tolist() != orders[2].tolist()
    assert orders[0].tolist() != orders[3].tolist()


@given(
    st.lists(st.integers(50, 3000), min_size=2, max_size=4),
    st.data(),
    st.sampled_from(["stop", "repeat"]),
    st.integers(0, 2**32),
    st.integers(0, 5),
)
def test_shares_hold_in_every_prefix(sizes: list[int], data: st.DataObject, exhaustion: str, seed: int, epoch: int):
    weights = np.array(data.draw(st.lists(st.floats(0.1, 1), min_size=len(sizes), max_size=len(sizes))))
    order = epoch_order(sizes, weights, exhaustion=exhaustion, seed=seed, epoch=epoch)
    source = np.searchsorted(np.cumsum(sizes), order, side="right")
    shares = weights / weights.sum()
    seen = np.stack([np.cumsum(source == number) for number in range(len(sizes))])
    wanted = shares[:, None] * np.arange(1, len(order) + 1)
    assert np.abs(seen - wanted).max() <= len(sizes) + 1
    if len(order) >= 300:
        assert np.abs(seen[:, 299] / 300 - shares).max() <= 0.02


def test_70_to_30_at_2000():
    order = epoch_order([5000, 5000], [0.7, 0.3])
    for size in (300, 1000, 2000):
        assert abs((order[:size] < 5000).mean() - 0.7) < 0.005


def test_stop_ends_with_the_first_source_and_the_larger_goes_on_unseen():
    sizes, weights = [100, 1000], [0.5, 0.5]
    epochs = [epoch_order(sizes, weights, exhaustion="stop", epoch=epoch) for epoch in range(10)]
    assert {len(order) for order in epochs} == {200}
    assert all(sorted(order[order < 100].tolist()) == list(range(100)) for order in epochs)
    seen = np.concatenate([order[order >= 100] for order in epochs])
    assert sorted(seen.tolist()) == list(range(100, 1100))


def test_repeat_sees_every_source_once_and_repeats_the_smaller():
    order = epoch_order([10, 100], [0.5, 0.5], exhaustion="repeat")
    assert len(order) == 200
    assert sorted(order[order >= 10].tolist()) == list(range(10, 110))
    assert np.bincount(order[order < 10]).tolist() == [10] * 10


def test_counts_and_empty_sources():
    assert epoch_counts([100, 100], [0.7, 0.3], "stop").tolist() == [100, 43]
    assert epoch_counts([100, 100], [0.7, 0.3], "repeat").tolist() == [233, 100]
    assert epoch_counts([30, 70], None, "stop").tolist() == [30, 70]
    with pytest.raises(ValueError, match="source 1"):
        epoch_counts([100, 0], [0.7, 0.3], "stop")
    assert len(epoch_order([0])) == 0


@given(st.lists(st.integers(0, 20), min_size=1, max_size=200), st.floats(0, 0.99), st.integers(0, 100))
def test_a_split_is_a_partition_by_document(documents: list[int], fraction: float, seed: int):
    numbers = np.sort(np.array(documents))
    train, val, note = split(numbers, fraction, seed)
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(len(numbers)))
    assert len(train) > 0
    assert note
    if len(set(documents)) > 1:
        assert not set(numbers[train]) & set(numbers[val])

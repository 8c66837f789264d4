import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data.plan import balance, first_fit, make_plan, take


def shuffled(size):
    def order(epoch):
        return np.random.default_rng([7, epoch]).permutation(size)

    return order


def plan(lengths, **kw):
    lengths = np.array(lengths)
    settings = dict(global_batch=4, max_tokens=20, max_steps=3) | kw
    return make_plan(lengths, lengths.astype(float), shuffled(len(lengths)), **settings)


def test_take_runs_over_epochs():
    order = shuffled(3)
    both = np.concatenate([order(0), order(1)])
    assert take(order, 2, 3).tolist() == both[2:5].tolist()


def test_first_fit_by_hand():
    assert first_fit(np.array([6, 5, 4, 3, 2]), 10) == 2
    assert first_fit(np.array([7, 7, 7]), 10) == 3


def test_balance_by_hand():
    groups = balance(np.array([8, 7, 2, 1]), 2, 10)
    assert groups == [[0, 3], [1, 2]]


def test_balance_refuses_what_cannot_fit():
    with pytest.raises(ValueError, match="do not fit"):
        balance(np.array([6, 6, 6]), 2, 10)


def test_examples_do_not_depend_on_the_split():
    lengths = np.random.default_rng(0).integers(1, 20, 50)
    reference = plan(lengths, max_tokens=1000)
    for ranks, most in ((1, 20), (2, 40), (4, 100)):
        other = plan(lengths, max_tokens=most, ranks=ranks)
        for step in range(3):
            assert reference.examples(step).tolist() == other.examples(step).tolist()
            assert other.step(step).share.weight == pytest.approx(reference.step(step).share.weight)


def test_share_is_the_whole_step():
    given = plan([3, 4, 5, 6, 7, 8], ranks=2)
    step = given.step(0)
    chosen = given.examples(0)
    assert step.share.examples == 4
    assert step.share.weight == pytest.approx(sum(np.array([3, 4, 5, 6, 7, 8])[chosen]))
    assert step.share.parts == 2 * given.micro_batches


def test_epochs_end_with_a_smaller_step():
    given = plan([1] * 10, max_steps=None, epochs=1)
    assert given.steps == 3
    assert [len(given.examples(s)) for s in range(3)] == [4, 4, 2]
    assert sorted(np.concatenate([given.examples(s) for s in range(3)]).tolist()) == list(range(10))


def test_a_run_that_is_given_more_goes_on_with_the_examples_that_its_short_last_step_left():
    lengths = [1] * 10
    first = plan(lengths, max_steps=None, epochs=1)
    assert (first.total, first.tokens, first.ends_at(2), first.ends_at(3)) == (10, 10.0, (), (10,))
    second = plan(lengths, max_steps=None, epochs=2, ends=first.ends_at(3))
    assert [len(second.examples(step)) for step in range(second.steps)] == [4, 4, 2, 4, 4, 2]
    assert [second.examples(step).tolist() for step in range(3)] == [first.examples(step).tolist() for step in range(3)]
    seen = np.concatenate([second.examples(step) for step in range(second.steps)])
    assert np.bincount(seen).tolist() == [2] * 10
    assert second.ends_at(6) == (10, 20)
    third = plan(lengths, max_steps=8, ends=second.ends_at(6))
    assert [len(third.examples(step)) for step in range(8)] == [4, 4, 2, 4, 4, 2, 4, 4]
    assert (third.total, third.ends_at(8)) == (28, (10, 20))
    assert plan(lengths, max_steps=2, ends=(10,)).total == 8
    assert [len(plan(lengths, max_steps=4, ends=(10,)).examples(step)) for step in range(4)] == [4, 4, 2, 4]


def test_a_batch_larger_than_the_data_repeats_it():
    given = plan([1, 2, 3], global_batch=7, max_steps=1)
    counts = np.bincount(given.examples(0), minlength=3)
    assert sorted(counts.tolist()) == [2, 2, 3]


@pytest.mark.parametrize(
    ("kw", "match"),
    [(dict(max_steps=None), "max_steps or epochs"), (dict(max_tokens=4), "longest example"), (dict(max_steps=None, epochs=0), "no step")],
)
def test_impossible_plans(kw, match):
    with pytest.raises(ValueError, match=match):
        plan([5, 5, 5, 5], **kw)


def test_outside_the_plan():
    with pytest.raises(IndexError):
        plan([1, 2, 3, 4]).examples(3)


@given(
    st.lists(st.integers(1, 64), min_size=1, max_size=120),
    st.integers(1, 16),
    st.integers(1, 4),
    st.integers(64, 300),
)
@settings(max_examples=150, deadline=None)
def test_every_step_of_any_run_fits(lengths, batch, ranks, capacity):
    lengths = np.array(lengths)
    given = make_plan(lengths, lengths * 1.0, shuffled(len(lengths)), global_batch=batch, max_tokens=capacity, ranks=ranks, epochs=3)
    seen = []
    for number in range(given.steps):
        step = given.step(number)
        assert len(step.split) == ranks
        needed = math.ceil(first_fit(lengths[given.examples(number)], capacity) / ranks)
        assert step.share.parts == ranks * given.micro_batches
        assert step.share.filled == ranks * needed
        for rank in step.split:
            assert len(rank) == needed <= given.micro_batches
            for group in rank:
                assert lengths[list(group)].sum() <= capacity
        flat = [index for rank in step.split for group in rank for index in group]
        assert sorted(flat) == sorted(given.examples(number).tolist())
        seen += flat
    assert sorted(seen) == sorted(list(range(len(lengths))) * 3)

"""From per-token log-probabilities to pairs, by hand: sums, lengths, tails, WPO's weights, drift."""

import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from posttrain.data.tree import collate, ghost, tree_of
from posttrain.functional import pairs as on_pairs
from posttrain.types import StepShare

SHARE = StepShare(1.0, 2, 1)


def pair(chosen, rejected, prompt=2):
    """A pair of these weights behind a prompt; ids that differ, so that the answers share nothing."""
    before = np.arange(prompt), np.zeros(prompt)
    answers = [(np.arange(first, first + len(weights)), np.array(weights)) for first, weights in ((10, chosen), (20, rejected))]
    return tree_of([tuple(np.concatenate(both) for both in zip(before, answer, strict=True)) for answer in answers])


def two_pairs():
    """Answers of 2 and 3 tokens, and of 3 (one of them half, behind one that is not trained) and 1."""
    return collate([pair([1, 1], [1, 1, 1]), pair([1, 0, 0.5, 1], [1])], SHARE)


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


#               chosen       rejected            chosen            rejected
LOGPS = numbers(-1.0, -2.0, -4.0, -8.0, -16.0, -0.5, -0.25, -3.0, -32.0)
KNOWN = numbers(-1.5, -1.5, -4.0, -6.0, -20.0, -1.0, -0.25, -2.0, -30.0)
BEYOND = [False, False, False, False, True, False, True, True, False]


def test_sums_over_answers():
    assert on_pairs.answer_sums(LOGPS, two_pairs()).tolist() == [-3.0, -28.0, -3.625, -32.0]
    assert gradcheck(lambda logps: on_pairs.answer_sums(logps, two_pairs()), (LOGPS.clone().requires_grad_(),))


def test_pairs_of_a_tree():
    got = on_pairs.pair_logps(LOGPS, KNOWN, two_pairs(), baseline=numbers(0.5))
    assert (got.chosen.tolist(), got.rejected.tolist()) == ([-3.0, -3.625], [-28.0, -32.0])
    assert (got.chosen_length.tolist(), got.rejected_length.tolist()) == ([2.0, 2.5], [3.0, 1.0])
    assert (got.reference_chosen.tolist(), got.reference_rejected.tolist()) == ([-3.0, -3.125], [-30.0, -30.0])
    assert got.baseline.tolist() == [0.5]
    free = on_pairs.pair_logps(LOGPS, None, two_pairs())
    assert (free.reference_chosen, free.reference_rejected, free.baseline) == (None, None, None)


def test_tokens_beyond_the_shorter_answer():
    assert on_pairs.beyond_the_shorter(two_pairs()).tolist() == BEYOND


def test_as_long_answers_have_no_tail():
    tree = collate([pair([1, 1], [1, 1], prompt=5), pair([1], [1], prompt=1)], SHARE)
    assert not on_pairs.beyond_the_shorter(tree).any()


@pytest.mark.parametrize("tail", [0.0, 0.4, 1.0])
def test_the_tail_counts_as_told_and_lengths_in_full(tail):
    got = on_pairs.pair_logps(LOGPS, KNOWN, two_pairs(), tail=tail)
    assert got.chosen.tolist() == pytest.approx([-3.0, -0.5 + tail * (-0.125 - 3.0)], rel=1e-14)
    assert got.rejected.tolist() == pytest.approx([-12.0 - 16.0 * tail, -32.0], rel=1e-14)
    assert got.reference_chosen.tolist() == pytest.approx([-3.0, -1.0 + tail * (-0.125 - 2.0)], rel=1e-14)
    assert got.reference_rejected.tolist() == pytest.approx([-10.0 - 20.0 * tail, -30.0], rel=1e-14)
    assert (got.chosen_length.tolist(), got.rejected_length.tolist()) == ([2.0, 2.5], [3.0, 1.0])


def test_gradient_through_the_tail():
    def f(logps):
        found = on_pairs.pair_logps(logps, None, two_pairs(), tail=0.4)
        return found.chosen, found.rejected

    assert gradcheck(f, (LOGPS.clone().requires_grad_(),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_keep_their_type(dtype):
    got = on_pairs.pair_logps(LOGPS.to(dtype), KNOWN.to(dtype), two_pairs(), tail=0.4)
    assert {got.chosen.dtype, got.rejected.dtype, got.reference_chosen.dtype, got.chosen_length.dtype} == {dtype}


def test_a_micro_batch_without_pairs():
    tree = collate([ghost(pair([1], [1]))], SHARE)
    nothing = numbers()
    got = on_pairs.pair_logps(nothing, nothing, tree, tail=0.4)
    assert (len(got.chosen), len(got.reference_rejected)) == (0, 0)
    assert on_pairs.likely_weights(nothing, nothing, tree).shape == (0,)
    assert {name: value.item() for name, value in on_pairs.drift(nothing, nothing, tree).items()} == {"drift/kl": 0, "drift/chosen": 0}


def test_weights_of_likely_pairs():
    # mean over each answer of log p - log sum p^2
    collision = numbers(-0.5, -1.5, -3.0, -7.0, -15.0, -0.25, -0.25, -2.5, -31.0)
    chosen = [-1.0 / 2, (-0.25 + 0.0 - 0.5) / 2.5]
    rejected = [-3.0 / 3, -1.0]
    want = [math.exp(c + r) for c, r in zip(chosen, rejected, strict=True)]
    logps = LOGPS.clone().requires_grad_()
    got = on_pairs.likely_weights(logps, collision, two_pairs())
    assert got.tolist() == pytest.approx(want, rel=1e-14)
    assert not got.requires_grad


def test_weights_are_at_most_one():
    # answers likelier than what sampling from the policy gives on average: by 1 a token, and by 0.5 against 0.75
    got = on_pairs.likely_weights(LOGPS, LOGPS - numbers(1, 1, 0, 0, 0, 0.5, 0.5, 0.5, -0.75), two_pairs())
    assert got.tolist() == pytest.approx([1.0, math.exp(-0.25)], rel=1e-14)


def test_divergence_per_token():
    def k3(d):
        return math.exp(d) - 1 - d

    d = (LOGPS - KNOWN).tolist()
    want = [
        (k3(d[0]) + k3(d[1])) / 2,
        (k3(d[2]) + k3(d[3]) + k3(d[4])) / 3,
        (k3(d[5]) + 0.5 * k3(d[6]) + k3(d[7])) / 2.5,
        k3(d[8]),
    ]
    got = on_pairs.divergence_per_token(LOGPS.clone().requires_grad_(), KNOWN, two_pairs())
    assert got.tolist() == pytest.approx(want, rel=1e-12)
    assert not got.requires_grad
    assert on_pairs.divergence_per_token(LOGPS, LOGPS, two_pairs()).tolist() == [0.0] * 4
    assert on_pairs.divergence_per_token(LOGPS + 500, KNOWN, two_pairs()).float().isfinite().all()


def test_drift_sums_over_pairs():
    tree, logps = two_pairs(), LOGPS.clone().requires_grad_()
    got = on_pairs.drift(logps, KNOWN, tree)
    each = on_pairs.divergence_per_token(LOGPS, KNOWN, tree).tolist()
    assert got["drift/kl"].item() == pytest.approx((each[0] + each[1]) / 2 + (each[2] + each[3]) / 2, rel=1e-14)
    # chosen answers: (-3 + 3) / 2 and (-3.625 + 3.125) / 2.5
    assert got["drift/chosen"].item() == pytest.approx(-0.2, rel=1e-14)
    assert not any(value.requires_grad for value in got.values())


def test_every_pair_by_itself():
    both = on_pairs.pair_logps(LOGPS, KNOWN, two_pairs(), baseline=torch.tensor(0.5))
    one, other = on_pairs.one_by_one(both)
    assert (one.chosen.tolist(), one.rejected_length.tolist(), one.reference_chosen.tolist()) == ([-3.0], [3.0], [-3.0])
    assert (other.rejected.tolist(), other.chosen_length.tolist(), other.reference_rejected.tolist()) == ([-32.0], [2.5], [-30.0])
    assert one.baseline is other.baseline is both.baseline
    free = on_pairs.one_by_one(on_pairs.pair_logps(LOGPS, None, two_pairs()))
    assert [part.reference_chosen for part in free] == [None, None]


def test_rewards():
    with_reference = on_pairs.pair_logps(LOGPS, KNOWN, two_pairs())
    assert [part.tolist() for part in on_pairs.implicit_rewards(with_reference, beta=0.5)] == [[0.0, -0.25], [1.0, -1.0]]
    free = on_pairs.pair_logps(LOGPS, None, two_pairs())
    chosen, rejected = on_pairs.implicit_rewards(free, beta=2.0)
    assert chosen.tolist() == pytest.approx([-3.0, -2.9])
    assert rejected.tolist() == pytest.approx([-56 / 3, -64.0])


def test_what_is_reported_of_pairs():
    pairs = on_pairs.pair_logps(LOGPS.clone().requires_grad_(), KNOWN, two_pairs())
    got = on_pairs.reported(pairs, beta=0.5)
    assert {name: value.item() for name, value in got.items()} == {
        "rewards/chosen": -0.25, "rewards/rejected": 0.0, "rewards/margin": -0.25, "rewards/accuracy": 1.0,
        "logps/chosen": -6.625, "logps/rejected": -60.0,
    }  # fmt: skip
    assert not any(value.requires_grad for value in got.values())
    assert on_pairs.preferred(numbers(-2.0, 0.0, 0.5)).tolist() == [0.0, 0.5, 1.0]

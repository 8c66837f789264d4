"""PPO's quantities by hand and by their definitions."""

import math
from functools import partial

import pytest
import torch
from torch.autograd import gradcheck

from posttrain.functional import gae

numbers = partial(torch.tensor, dtype=torch.float64)
REWARDS = numbers((0.0, -0.5, 2.0, 1.0, 0.25, -1.0))
VALUES = numbers((0.5, 1.0, 1.5, -0.5, 0.75, 0.25))
LENGTHS = torch.tensor((3, 0, 1, 2))


def by_definition(gamma, lam):
    found, start = [], 0
    for length in LENGTHS.tolist():
        r, v = (x[start : start + length].tolist() for x in (REWARDS, VALUES))
        delta = [r[t] + gamma * (v[t + 1] if t + 1 < length else 0.0) - v[t] for t in range(length)]
        found += [sum((gamma * lam) ** j * delta[t + j] for j in range(length - t)) for t in range(length)]
        start += length
    return found


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.99, 0.0)])
def test_gae(gamma, lam):
    advantages, returns = gae.gae(REWARDS, VALUES, LENGTHS, gamma=gamma, lam=lam)
    assert advantages.tolist() == pytest.approx(by_definition(gamma, lam))
    torch.testing.assert_close(returns, advantages + VALUES)


def test_without_discounts_returns_are_sums_of_rewards():
    _, returns = gae.gae(REWARDS, VALUES, LENGTHS, gamma=1.0, lam=1.0)
    assert returns.tolist() == pytest.approx([1.5, 1.5, 2.0, 1.0, -0.75, -1.0])


def test_answers_do_not_see_each_other():
    whole, _ = gae.gae(REWARDS, VALUES, LENGTHS)
    parts = [gae.gae(r, v, torch.tensor([len(r)]))[0] for r, v in zip(REWARDS.split([3, 1, 2]), VALUES.split([3, 1, 2]), strict=True)]
    torch.testing.assert_close(whole, torch.cat(parts))


def test_no_gradient_no_tokens_and_refusals():
    advantages, returns = gae.gae(REWARDS, VALUES.clone().requires_grad_(), LENGTHS)
    assert not advantages.requires_grad
    assert not returns.requires_grad
    empty = torch.empty(0)
    assert len(gae.gae(empty, empty, torch.tensor([0, 0]))[0]) == 0
    assert len(gae.gae(empty, empty, torch.empty(0, dtype=torch.int64))[0]) == 0
    with pytest.raises(ValueError, match="sum to 6"):
        gae.gae(REWARDS[:5], VALUES[:5], LENGTHS)
    for options in ({"gamma": 1.5}, {"lam": -0.1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            gae.gae(REWARDS, VALUES, LENGTHS, **options)


def test_whitening_is_over_all_ranks():
    weight = numbers((1, 1, 0, 1, 1, 1))
    kept = VALUES[weight != 0]
    halves = [gae.moments(VALUES[s], weight[s]) for s in (slice(0, 2), slice(2, 6))]
    found = gae.whiten(VALUES, weight, sum(halves), eps=0.0)
    torch.testing.assert_close(found[weight != 0], (kept - kept.mean()) / kept.std())
    assert found[2] == 0
    kept_mean = gae.whiten(VALUES, weight, sum(halves), shift_mean=False, eps=0.0)
    torch.testing.assert_close(kept_mean[weight != 0].mean(), kept.mean())


def test_whitening_where_there_is_little():
    weight = numbers((0, 0, 1, 0, 0, 0))
    assert gae.whiten(VALUES, weight, gae.moments(VALUES, weight)).tolist() == [0.0] * 6
    none = torch.zeros_like(weight)
    assert gae.whiten(VALUES * math.nan, none, gae.moments(VALUES * math.nan, none)).tolist() == [0.0] * 6
    close = 1e4 + torch.tensor([0.0, 1e-2, 2e-2])  # float32, far from 0
    whitened = gae.whiten(close, torch.ones(3), gae.moments(close, torch.ones(3)))
    assert whitened.std().item() == pytest.approx(1.0, rel=1e-3)


def test_token_rewards():
    logps, reference = numbers((-1.0, -2.0, -0.5, -1.0, -1.0, -3.0)), numbers((-1.5, -1.5, -0.5, -2.0, -1.0, -2.0))
    scores = numbers((4.0, 9.0, -1.0, 0.5))
    found = gae.token_rewards(scores, logps, reference, LENGTHS, coef=0.1)
    assert found.tolist() == pytest.approx([-0.05, 0.05, 4.0, -1.1, 0.0, 0.6])
    square = gae.token_rewards(scores, logps, reference, LENGTHS, coef=0.1, estimator="k2")
    assert square.tolist() == pytest.approx([-0.0125, -0.0125, 4.0, -1.05, 0.0, 0.45])


def test_missing_end():
    assert gae.missing_end(numbers((1.0, 2.0)), torch.tensor([True, False]), penalty=0.5).tolist() == [1.0, 1.5]


def test_value_loss():
    values, old, returns = numbers((1.0, 0.0, 2.0)), numbers((0.5, 0.1, 1.0)), numbers((2.0, 0.5, 0.0))
    bounded = (0.7, 0.0, 1.2)
    losses = [max((v - r) ** 2, (b - r) ** 2) / 2 for v, b, r in zip((1.0, 0.0, 2.0), bounded, (2.0, 0.5, 0.0), strict=True)]
    loss, metrics = gae.value_loss(values, old, returns, numbers((1, 1, 1)), 6.0)
    assert loss.item() == pytest.approx(sum(losses) / 6)
    assert metrics["value/clip"].item() == pytest.approx(1 / 6)
    assert metrics["value/error"].item() == pytest.approx((1 + 0.25 + 4) / 6)
    free, _ = gae.value_loss(values, old, returns, numbers((1, 0, 1)), 2.0, clip=None)
    assert free.item() == pytest.approx(5 / 4)
    assert gradcheck(lambda v: gae.value_loss(v, old, returns, numbers((1, 1, 1)), 6.0)[0], (values.requires_grad_(),))


def test_adaptive_coefficient():
    assert gae.adapted(0.2, 6.6) == pytest.approx(0.2 * 1.01)
    assert gae.adapted(0.2, 100.0) == pytest.approx(0.2 * 1.02)
    assert gae.adapted(0.2, 0.0) == pytest.approx(0.2 * 0.98)
    with pytest.raises(ValueError, match="target"):
        gae.adapted(0.2, 1.0, target=0.0)

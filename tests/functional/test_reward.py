"""Losses of reward models against plain arithmetic, their gradients, and where they are least."""

import math
from functools import partial

import pytest
import torch
from torch.autograd import gradcheck

from posttrain.functional import reward
from posttrain.types import Judged

number = partial(torch.tensor, dtype=torch.float64)
NAN = float("nan")
CHOSEN, REJECTED, GAP = (1.0, -0.5, 2.0), (0.5, 0.5, -1.0), (2.0, NAN, -1.0)


def nll(x):
    return math.log1p(math.exp(-x))


@pytest.mark.parametrize(("margin_scale", "centre"), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.01), (0.25, 0.1)])
def test_bradley_terry(margin_scale, centre):
    losses = reward.bradley_terry(number(CHOSEN), number(REJECTED), number(GAP), margin_scale=margin_scale, centre=centre)
    gaps = [0.0 if math.isnan(gap) else gap for gap in GAP]
    wanted = [nll(c - r - margin_scale * g) + centre * (c + r) ** 2 for c, r, g in zip(CHOSEN, REJECTED, gaps, strict=True)]
    torch.testing.assert_close(losses, number(wanted))


def test_equal_rewards_cost_ln2():
    assert reward.bradley_terry(number([3.0]), number([3.0]), number([NAN])).item() == pytest.approx(math.log(2))


def test_gradients():
    pair = [number(values, requires_grad=True) for values in (CHOSEN, REJECTED)]
    assert gradcheck(lambda c, r: reward.bradley_terry(c, r, number(GAP), margin_scale=0.3, centre=0.05), pair)
    quantiles = number([[0.0, 0.4, 1.1], [-1.0, 0.2, 0.7]], requires_grad=True)
    assert gradcheck(lambda q: reward.pinball_loss(q, number([0.3, 0.5]), number([0.2, 0.5, 0.8])), [quantiles])
    steps = number([[0.3, -2.0], [1.0, 0.0]], requires_grad=True)
    assert gradcheck(lambda s: reward.ascending(number([[0.1], [0.2]]), s), [steps])
    assert gradcheck(lambda s: reward.step_loss(s, number([1.0, 0.0])), [steps])
    said = number([[0.3, 0.6], [0.9, 0.1]], requires_grad=True)
    assert gradcheck(lambda a: reward.attribute_loss(a, number([[0.5, NAN], [NAN, 0.0]])), [said])


def test_losses_on_ratings():
    judged = Judged(number([1.0, 3.0, 0.5]))
    score = number([0.0, 1.0, NAN])
    torch.testing.assert_close(reward.squared(judged, score), number([1.0, 4.0, 0.0]))
    torch.testing.assert_close(reward.huber(judged, score, delta=1.0), number([0.5, 1.5, 0.0]))


def test_an_unknown_rating_has_no_gradient():
    said = number([1.0, 2.0], requires_grad=True)
    reward.squared(Judged(said), number([NAN, 1.0])).sum().backward()
    assert said.grad.tolist() == [0.0, 2.0]


@pytest.mark.parametrize("level", [0.1, 0.5, 0.75])
def test_pinball_is_least_at_the_quantile(level):
    sample = torch.randn(2001, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grid = torch.linspace(-3, 3, 1201, dtype=torch.float64)
    cost = torch.stack([reward.pinball_loss(q.expand(len(sample), 1), sample, number([level])).mean() for q in grid])
    assert float(grid[cost.argmin()]) == pytest.approx(float(sample.quantile(level)), abs=0.006)


def test_pinball_by_hand():
    judged = Judged(number([0.0]), quantiles=number([[0.0, 1.0]]), levels=number([0.25, 0.75]))
    # y = 0.5 lies 0.5 above the first quantile and 0.5 below the second
    torch.testing.assert_close(reward.pinball(judged, number([0.5])), number([(0.25 * 0.5 + 0.25 * 0.5) / 2]))
    with pytest.raises(ValueError, match="needs a head with quantiles"):
        reward.pinball(Judged(number([0.0])), number([0.5]))


def test_quantiles_ascend():
    quantiles = reward.ascending(torch.randn(50, 1) * 5, torch.randn(50, 8) * 20)
    assert (quantiles.diff(dim=1) >= 0).all()


def test_attribute_loss():
    said, rated = number([[0.8, 0.3], [0.5, 0.5]]), number([[1.0, 0.25], [NAN, NAN]])
    cross = -math.log(0.8), -(0.25 * math.log(0.3) + 0.75 * math.log(0.7))
    torch.testing.assert_close(reward.attribute_loss(said, rated), number([sum(cross) / 2, 0.0]))
    torch.testing.assert_close(reward.attribute_loss(said[:1], number([[NAN, 0.25]])), number([cross[1]]))


def test_step_loss_is_the_cross_entropy():
    logits, labels = number([[0.5, -1.0], [2.0, 1.0], [0.0, 0.0]]), torch.tensor([0, 1, 1])
    wanted = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(reward.step_loss(logits, labels.double()), wanted)
    assert reward.step_loss(logits, number([NAN, 1.0, 1.0]))[0] == 0

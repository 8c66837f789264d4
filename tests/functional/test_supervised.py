import math

import pytest
import torch

from posttrain.functional.reductions import segment_sum, step_mean
from posttrain.functional.supervised import dft, label_smoothing, nll, z_loss

LOGPS = torch.tensor([math.log(0.5), math.log(0.25)], dtype=torch.float64)
WEIGHT = torch.tensor([1.0, 3.0])


def test_nll_hand_value():
    loss, metrics = nll(LOGPS, WEIGHT, 4.0)
    assert loss.item() == pytest.approx((math.log(2) + 3 * math.log(4)) / 4)
    assert metrics == {}


def test_dft_hand_value_and_gradient():
    logps = LOGPS.clone().requires_grad_()
    loss, metrics = dft(logps, WEIGHT, 4.0)
    assert loss.item() == pytest.approx((0.5 * math.log(2) + 3 * 0.25 * math.log(4)) / 4)
    assert metrics["nll"].item() == pytest.approx(nll(LOGPS, WEIGHT, 4.0)[0].item())
    loss.backward()
    # the probability is not differentiated: d/dlogp = -w p / denominator
    assert logps.grad.tolist() == pytest.approx([-0.5 / 4, -3 * 0.25 / 4])


def test_label_smoothing_is_cross_entropy_with_mixed_targets():
    logits = torch.randn(6, 9, dtype=torch.float64)
    target = torch.arange(6)
    logp = logits.log_softmax(-1)
    want = torch.nn.functional.cross_entropy(logits, target, label_smoothing=0.1)
    ones = torch.ones(6)
    plain, _ = nll(logp.gather(1, target[:, None])[:, 0], ones, 6.0)
    got = label_smoothing(plain, logp.mean(-1), ones, 6.0, epsilon=0.1)
    torch.testing.assert_close(got, want)


def test_z_loss_hand_value():
    assert z_loss(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0]), 2.0).item() == pytest.approx(2.5)


def test_parts_add_up_to_the_whole():
    logps, weight = torch.randn(10, dtype=torch.float64), torch.rand(10)
    whole, _ = nll(logps, weight, 7.0)
    parts = sum(nll(logps[i::3], weight[i::3], 7.0)[0] for i in range(3))
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize("epsilon", [-0.1, 1.0])
def test_smoothing_out_of_range(epsilon):
    with pytest.raises(ValueError, match="smoothing"):
        label_smoothing(LOGPS.sum(), LOGPS, WEIGHT, 1.0, epsilon=epsilon)


def test_denominator_must_be_positive():
    with pytest.raises(ValueError, match="denominator"):
        step_mean(LOGPS, WEIGHT, 0.0)


def test_segment_sum():
    assert segment_sum(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 2, 0]), 3).tolist() == [5.0, 0.0, 2.0]

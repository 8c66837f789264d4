"""Estimates of a divergence that can be summed exactly: their expectations, and the expected gradients as losses."""

import pytest
import torch
from torch.autograd import gradcheck

from posttrain.functional import kl

LOGITS = torch.tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64)
REFERENCE = torch.tensor([-0.2, 0.5, 0.4, -1.5], dtype=torch.float64).log_softmax(0)
OLD = torch.tensor([0.0, -0.5, 0.6, 0.4], dtype=torch.float64).log_softmax(0)


def exact(logits, *, forward=False):
    """KL(pi || ref), or KL(ref || pi)."""
    logps = logits.log_softmax(0)
    first, second = (REFERENCE, logps) if forward else (logps, REFERENCE)
    return (first.exp() * (first - second)).sum()


def gradient(value):
    logits = LOGITS.clone().requires_grad_()
    return torch.autograd.grad(value(logits), logits)[0]


def expected(estimator, logits, *, old=None):
    """Expectation of the estimate over tokens that pi, or `old`, sampled, as a loss sees it: the sampling has no gradient."""
    logps = logits.log_softmax(0)
    ratio = None if old is None else (logps - old).exp()
    sampled = logps if old is None else old
    return (sampled.detach().exp() * kl.penalty(logps, REFERENCE, ratio, estimator=estimator)).sum()


def test_by_hand():
    logps, reference = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0])
    assert kl.k1(logps, reference).tolist() == pytest.approx([0.5, -1.0])
    assert kl.k2(logps, reference).tolist() == pytest.approx([0.125, 0.5])
    assert kl.k3(logps, reference).tolist() == pytest.approx([0.1065307, 0.7182818])
    assert kl.k1(logps, reference, clamp=0.75).tolist() == pytest.approx([0.5, -0.75])


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_unbiased(estimator):
    assert expected(estimator, LOGITS).item() == pytest.approx(exact(LOGITS).item())
    assert expected(estimator, LOGITS, old=OLD).item() == pytest.approx(exact(LOGITS).item())


def test_which_gradient_each_has_as_a_loss():
    right, forward = gradient(exact), gradient(lambda logits: exact(logits, forward=True))
    torch.testing.assert_close(gradient(lambda x: expected("k1", x)), torch.zeros_like(LOGITS), atol=1e-12, rtol=0)
    torch.testing.assert_close(gradient(lambda x: expected("k2", x)), right)
    torch.testing.assert_close(gradient(lambda x: expected("k3", x)), forward)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
@pytest.mark.parametrize("old", [OLD, LOGITS.log_softmax(0)], ids=["off-policy", "on-policy"])
def test_the_ratio_makes_the_gradient_right(estimator, old):
    torch.testing.assert_close(gradient(lambda x: expected(estimator, x, old=old)), gradient(exact))


def test_refusals():
    with pytest.raises(ValueError, match="k4"):
        kl.penalty(OLD, REFERENCE, estimator="k4")
    with pytest.raises(ValueError, match="k2"):
        kl.penalty(OLD, REFERENCE, torch.ones(4), estimator="k2")


@pytest.mark.parametrize("estimator", kl.ESTIMATORS)
def test_gradcheck(estimator):
    assert gradcheck(lambda logps: kl.penalty(logps, REFERENCE, estimator=estimator), (OLD.clone().requires_grad_(),))

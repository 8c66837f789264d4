"""Gradients of the head in the forward pass."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from posttrain.functional import logprobs
from posttrain.functional.ahead import head_ahead
from posttrain.functional.head import HeadSpec
from posttrain.functional.logprobs import token_stats


def case(n=7, h=5, v=600, dtype=torch.float64, spread=1.0):
    gen = torch.Generator().manual_seed(0)
    hidden, weight = (spread * torch.randn(*shape, generator=gen, dtype=dtype) for shape in ((n, h), (v, h)))
    slopes = torch.tensor([-1.0, 0.0, 2.0, 0.5, -0.25, 1.0, 1.0], dtype=dtype)[:n]
    return hidden.requires_grad_(), weight.requires_grad_(), torch.randint(0, v, (n,), generator=gen), slopes


def written_out(hidden, weight, target, slopes, head=None):
    logp = ((hidden @ weight.T) * (1.0 if head is None else head.scale / head.temperature)).log_softmax(-1)
    logps = logp.gather(1, target[:, None])[:, 0]
    return logps, torch.autograd.grad((slopes * logps).sum(), (hidden, weight))


def test_hand_value():
    # logits (0, ln 3): p = (1/4, 3/4); d log p_1 / d logits = (-1/4, 1/4)
    weight = torch.tensor([[0.0], [math.log(3)]])
    found = head_ahead(torch.ones(1, 1), weight, torch.tensor([1]), torch.tensor([2.0]))
    assert found.logps.item() == pytest.approx(math.log(0.75))
    assert found.lse.item() == pytest.approx(math.log(4))
    assert found.correct.tolist() == [True]
    assert found.weight[:, 0].tolist() == pytest.approx([-0.5, 0.5])
    assert found.hidden.item() == pytest.approx(0.5 * math.log(3))


@pytest.mark.parametrize("head", [HeadSpec(), HeadSpec(scale=0.25, temperature=0.7)])
@pytest.mark.parametrize("elements", [1, 3 * 600, 10**6])
@pytest.mark.parametrize("columns", [1, 256, 600, None])
@pytest.mark.parametrize("spread", [1.0, 12.0])  # the latter: most of the blocks' shares of the sum underflow in float32
def test_values_and_gradients_match_the_written_out_formula_however_they_are_cut(head, elements, columns, spread):
    hidden, weight, target, slopes = case(spread=spread)
    found = head_ahead(hidden.detach(), weight.detach(), target, slopes, head, elements=elements, columns=columns)
    logps, (dh, dw) = written_out(hidden, weight, target, slopes, head)
    torch.testing.assert_close(found.logps, logps.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.hidden, dh, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(found.weight, dw, rtol=1e-9, atol=1e-11)
    single = head_ahead(*(x.detach().float() for x in (hidden, weight)), target, slopes.float(), head, elements=elements, columns=columns)
    torch.testing.assert_close(single.logps.double(), logps.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(single.weight.double(), dw, rtol=1e-4, atol=1e-4)


@pytest.fixture
def blocks_computed(monkeypatch):
    """Numbers of logits that the other way computes, forward and backward."""
    seen = []
    real = logprobs.head_logits

    def counted(*args):
        logits = real(*args)
        seen.append(logits.numel())
        return logits

    monkeypatch.setattr(logprobs, "head_logits", counted)
    return seen


@pytest.mark.parametrize("factor", [1.0, -3.0, 0.0])
def test_known_slopes_spare_the_backward_pass_its_logits(factor, blocks_computed):
    hidden, weight, target, slopes = case()
    stats = token_stats(hidden, weight, target, slopes=slopes, correct=True)
    assert torch.equal(stats.correct, (hidden @ weight.T).argmax(-1) == target)
    found = torch.autograd.grad((factor * slopes * stats.logps).sum(), (hidden, weight))
    assert not blocks_computed
    for got, want in zip(found, written_out(hidden, weight, target, factor * slopes)[1], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("known", [torch.ones(7), torch.zeros(7), torch.full((7,), torch.nan)], ids=["others", "none", "nan"])
def test_gradients_are_right_where_the_slopes_were_not(known, blocks_computed):
    hidden, weight, target, slopes = case()
    stats = token_stats(hidden, weight, target, slopes=known.double())
    found = torch.autograd.grad((slopes * stats.logps).sum(), (hidden, weight))
    assert blocks_computed
    for got, want in zip(found, written_out(hidden, weight, target, slopes)[1], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


def test_a_gradient_of_the_log_partition_is_the_usual_one():
    hidden, weight, target, slopes = case()
    stats = token_stats(hidden, weight, target, slopes=slopes)
    found = torch.autograd.grad((slopes * stats.logps + stats.lse.square()).sum(), (hidden, weight))
    plain = token_stats(hidden, weight, target)
    want = torch.autograd.grad((slopes * plain.logps + plain.lse.square()).sum(), (hidden, weight))
    for got, expected in zip(found, want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


def test_a_graph_may_be_walked_twice():
    hidden, weight, target, slopes = case()
    loss = (2 * slopes * token_stats(hidden, weight, target, slopes=slopes).logps).sum()
    first = [g.clone() for g in torch.autograd.grad(loss, (hidden, weight), retain_graph=True)]
    for got, want in zip(torch.autograd.grad(loss, (hidden, weight)), first, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("other", ["bias", "softcap", "entropy", "frozen head", "frozen states", "no gradient"])
def test_what_slopes_do_not_help_is_computed_as_ever(other, blocks_computed):
    hidden, weight, target, slopes = case()
    bias = torch.ones(len(weight), dtype=torch.float64) if other == "bias" else None
    hidden, weight = hidden.requires_grad_(other != "frozen states"), weight.requires_grad_(other != "frozen head")
    head = HeadSpec(softcap=3.0) if other == "softcap" else HeadSpec()
    with torch.set_grad_enabled(other != "no gradient"):
        stats = token_stats(hidden, weight, target, bias, head=head, entropy=other == "entropy", slopes=slopes)
    plain = token_stats(hidden, weight, target, bias, head=head, entropy=other == "entropy")
    assert torch.equal(stats.logps, plain.logps)
    assert blocks_computed


def test_no_targets():
    hidden, weight, target, slopes = case(n=0)
    stats = token_stats(hidden, weight, target, slopes=slopes)
    assert [g.abs().sum().item() for g in torch.autograd.grad(stats.logps.sum(), (hidden, weight))] == [0.0, 0.0]


def test_every_logit_is_computed_once():
    hidden, weight, target, slopes = case()
    with FlopCounterMode(display=False) as counter:
        stats = token_stats(hidden, weight, target, slopes=slopes)
        torch.autograd.grad((slopes * stats.logps).sum(), (hidden, weight))
    assert counter.get_total_flops() == 6 * 7 * 600 * 5

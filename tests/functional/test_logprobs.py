import math

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed
from torch.autograd import gradcheck

from posttrain.functional import blocks, fused
from posttrain.functional.head import HeadSpec
from posttrain.functional.logprobs import token_stats

HEADS = [HeadSpec(), HeadSpec(softcap=3.0), HeadSpec(scale=0.25), HeadSpec(scale=2.0, softcap=5.0, temperature=0.7)]


def reference(hidden, weight, target, bias, head):
    logits = (hidden @ weight.T + (0 if bias is None else bias)) * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    logits = logits / head.temperature
    logp = logits.log_softmax(-1)
    return {
        "logps": logp.gather(1, target[:, None])[:, 0],
        "lse": logits.logsumexp(-1),
        "entropy": -(logp.exp() * logp).sum(-1),
        "mean_logps": logp.mean(-1),
        "correct": logits.argmax(-1) == target,
    }


def case(dtype=torch.float64, n=7, h=5, v=11):
    gen = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, h, generator=gen, dtype=dtype, requires_grad=True)
    weight = torch.randn(v, h, generator=gen, dtype=dtype, requires_grad=True)
    bias = torch.randn(v, generator=gen, dtype=dtype, requires_grad=True)
    return hidden, weight, torch.randint(0, v, (n,), generator=gen), bias


def test_hand_value():
    # logits (0, ln 3): p = (1/4, 3/4)
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[0.0], [math.log(3)]])
    got = token_stats(hidden, weight, torch.tensor([1]), entropy=True, mean_logps=True, correct=True)
    assert got.logps.item() == pytest.approx(math.log(0.75))
    assert got.lse.item() == pytest.approx(math.log(4))
    assert got.entropy.item() == pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))
    assert got.mean_logps.item() == pytest.approx((math.log(0.25) + math.log(0.75)) / 2)
    assert got.correct.item() is True


@pytest.fixture(params=["in place", "as on devices"])
def way(request, monkeypatch):
    """How blocks are worked on; what is compiled on devices is run as it is."""
    if request.param != "in place":
        monkeypatch.setattr(blocks, "in_place", lambda logits: False)
        monkeypatch.setattr(fused, "compiled", lambda function, *given: function(*given))
    return request.param


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("columns", "kept"), [(1, 0), (3, 0), (3, 30), (4, 10**6), (100, 0), (100, 10**6), (None, 10**6)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_values_and_gradients_match_the_written_out_formula(head, columns, kept, with_bias):
    hidden, weight, target, bias = case()
    given = bias if with_bias else None
    got = token_stats(hidden, weight, target, given, head=head, entropy=True, mean_logps=True, correct=True, columns=columns, kept=kept)
    want = reference(hidden, weight, target, given, head)
    mix = [1.0, 0.3, -0.7, 0.2]
    inputs = [hidden, weight, *([bias] if with_bias else [])]
    names = ("logps", "lse", "entropy", "mean_logps")
    coefficient = torch.linspace(-1, 2, len(target), dtype=torch.float64)
    total = sum(m * (coefficient * getattr(got, name)).sum() for m, name in zip(mix, names, strict=True))
    expected = sum(m * (coefficient * want[name]).sum() for m, name in zip(mix, names, strict=True))
    for name in names:
        torch.testing.assert_close(getattr(got, name), want[name], rtol=1e-10, atol=1e-12)
    assert torch.equal(got.correct, want["correct"])
    for g, w in zip(torch.autograd.grad(total, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-11)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("head", HEADS)
def test_gradcheck(head):
    hidden, weight, target, bias = case(n=4, h=3, v=6)

    def f(h, w, b):
        s = token_stats(h, w, target, b, head=head, entropy=True, mean_logps=True, columns=4, kept=10)
        return s.logps, s.lse, s.entropy, s.mean_logps

    assert gradcheck(f, (hidden, weight, bias))


def test_frozen_head_gets_no_gradient_and_hidden_the_same_one():
    hidden, weight, target, _ = case()
    token_stats(hidden, weight, target).logps.sum().backward()
    frozen = hidden.detach().requires_grad_()
    token_stats(frozen, weight.detach(), target).logps.sum().backward()
    torch.testing.assert_close(frozen.grad, hidden.grad)


def test_no_targets_still_reach_every_parameter():
    hidden, weight, _, _ = case()
    token_stats(hidden[:0], weight, torch.zeros(0, dtype=torch.int64)).logps.sum().backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))


def test_bfloat16_accumulates_in_float32():
    hidden, weight, target, _ = case(torch.float32, n=64, h=32, v=500)
    want = reference(hidden.bfloat16().double(), weight.bfloat16().double(), target, None, HeadSpec())["logps"]
    got = token_stats(hidden.bfloat16(), weight.bfloat16(), target)
    assert got.logps.dtype == torch.float32
    # the only rounding is that of the logits themselves
    torch.testing.assert_close(got.logps.double(), want, rtol=0, atol=0.1)


def test_autocast_uses_its_type_and_returns_gradients_in_the_weights_type():
    hidden, weight, target, _ = case(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = token_stats(hidden, weight, target).logps
    out.sum().backward()
    assert out.dtype == weight.grad.dtype == hidden.grad.dtype == torch.float32
    exact = reference(hidden, weight, target, None, HeadSpec())["logps"]
    assert 0 < (out - exact).abs().max() < 0.1


def test_memory_does_not_hold_the_logits():
    n, h, v = 4096, 8, 50_000
    hidden, weight = torch.randn(n, h, requires_grad=True), torch.randn(v, h, requires_grad=True)
    target = torch.randint(0, v, (n,))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as prof:
        token_stats(hidden, weight, target, columns=256).logps.sum().backward()
    sizes = [e.self_cpu_memory_usage for e in prof.key_averages()]
    largest = max((e.cpu_memory_usage for e in prof.events()), default=0)
    assert sizes
    assert largest < n * v * 4 / 8  # an eighth of the logits, float32


@pytest.mark.parametrize("bad", [dict(temperature=0.0), dict(softcap=-1.0)])
def test_bad_head(bad):
    with pytest.raises(ValueError, match="positive"):
        HeadSpec(**bad)


def test_bad_shapes():
    with pytest.raises(ValueError, match=r"\[N, H\]"):
        token_stats(torch.zeros(3, 4), torch.zeros(5, 3), torch.zeros(3, dtype=torch.int64))


def test_collision_by_hand():
    # p = (1/4, 3/4): sum of squares 10/16
    got = token_stats(torch.tensor([[1.0]]), torch.tensor([[0.0], [math.log(3)]]), torch.tensor([1]), collision=True)
    assert got.log_collision.item() == pytest.approx(math.log(10 / 16))
    assert token_stats(torch.zeros(1, 1), torch.zeros(2, 1), torch.tensor([0])).log_collision is None


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("entropy", [True, False])
@pytest.mark.parametrize(("columns", "kept"), [(256, 0), (256, 10**6), (None, 10**6)])
def test_collision_over_several_blocks_of_the_vocabulary(head, entropy, columns, kept):
    hidden, weight, target, bias = case(v=700)
    weight = (5 * weight).detach().requires_grad_()  # the greatest logit moves from block to block
    got = token_stats(hidden, weight, target, bias, head=head, entropy=entropy, collision=True, columns=columns, kept=kept)
    logits = (hidden @ weight.T + bias) * head.scale
    logits = (logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)) / head.temperature
    torch.testing.assert_close(got.log_collision, (2 * logits.log_softmax(-1)).logsumexp(-1).detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(got.logps, reference(hidden, weight, target, bias, head)["logps"], rtol=1e-10, atol=1e-12)


def test_collision_has_no_gradient_and_leaves_the_others_alone():
    hidden, weight, target, bias = case()
    got = token_stats(hidden, weight, target, bias, collision=True, columns=4)
    assert not got.log_collision.requires_grad
    inputs = (hidden, weight, bias)
    with_it = torch.autograd.grad((got.logps * got.log_collision.exp()).sum(), inputs)
    plain = token_stats(hidden, weight, target, bias, columns=4).logps
    without = torch.autograd.grad((plain * got.log_collision.exp()).sum(), inputs)
    assert all(torch.equal(one, other) for one, other in zip(with_it, without, strict=True))


def test_collision_of_a_certain_prediction():
    got = token_stats(torch.tensor([[200.0]]), torch.tensor([[1.0], [-1.0], [0.0]]), torch.tensor([0]), collision=True, columns=1)
    assert got.log_collision.item() == 0.0


def test_what_cannot_be_compiled_is_run_as_it_is_and_told_once(monkeypatch, caplog):
    def refused(function):
        def run(*_, **__):
            raise BackendCompilerFailed(compiler, RuntimeError("no compiler here"), None)

        return run

    def compiler():
        pass

    def double(x):
        return x * 2

    monkeypatch.setattr(fused, "_kernel", refused)
    x = torch.arange(3.0)
    for _ in range(2):
        assert torch.equal(fused.compiled(double, x), 2 * x)
    assert len(caplog.records) == 1
    assert "no compiler here" in caplog.text


def test_an_error_of_the_operations_themselves_is_not_taken_for_a_failed_compilation(monkeypatch):
    monkeypatch.setattr(fused, "_kernel", lambda function: function)
    with pytest.raises(RuntimeError, match="size"):
        fused.compiled(torch.add, torch.ones(2), torch.ones(3))

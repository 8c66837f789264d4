"""Optimizer factories: updates by hand, decay where it belongs."""

from __future__ import annotations

import builtins

import pytest
import torch
from torch import nn

from posttrain.errors import ConfigError, MissingExtra
from posttrain.models import optimizers


def named(*shapes: tuple[int, ...]) -> list[tuple[str, nn.Parameter]]:
    return [(f"p{index}", nn.Parameter(torch.ones(shape))) for index, shape in enumerate(shapes)]


def test_adamw_first_step_by_hand() -> None:
    params = named((2, 2), (2,))
    for _, parameter in params:
        parameter.grad = torch.full_like(parameter, 3.0)
    optimizers.adamw(params, lr=0.1, weight_decay=0.5).step()
    # After bias correction the first update is lr * sign(gradient); decay multiplies by 1 - lr * decay first.
    torch.testing.assert_close(params[0][1].data, torch.full((2, 2), 1 - 0.1 * 0.5 - 0.1))
    torch.testing.assert_close(params[1][1].data, torch.full((2,), 1 - 0.1))


def test_sgd_by_hand() -> None:
    params = named((1, 1))
    optimizer = optimizers.sgd(params, lr=0.5, weight_decay=0.0, momentum=0.5)
    for want in (0.5, -0.25):
        params[0][1].grad = torch.ones(1, 1)
        optimizer.step()
        assert params[0][1].item() == pytest.approx(want)


def test_adafactor_step_is_relative_to_the_weight() -> None:
    small, large = nn.Parameter(torch.full((4, 4), 0.1)), nn.Parameter(torch.full((4, 4), 10.0))
    for parameter in (small, large):
        parameter.grad = torch.ones_like(parameter)
    optimizers.adafactor([("small", small), ("large", large)], lr=0.01).step()
    assert (10.0 - large.mean().item()) / 10.0 == pytest.approx((0.1 - small.mean().item()) / 0.1, rel=1e-3)


def test_vectors_are_never_decayed() -> None:
    groups = optimizers.decay_groups(named((3, 3), (3,), (2, 3, 3)), 0.1)
    assert [(group["weight_decay"], [p.ndim for p in group["params"]]) for group in groups] == [(0.1, [2, 3]), (0.0, [1])]


def test_biases_of_experts_are_not_decayed() -> None:
    params = [(f"experts.gate_up_proj{end}", nn.Parameter(torch.ones(shape))) for end, shape in (("", (2, 3, 4)), ("_bias", (2, 4)))]
    groups = optimizers.decay_groups(params, 0.1)
    assert [(group["weight_decay"], [p.ndim for p in group["params"]]) for group in groups] == [(0.1, [3]), (0.0, [2])]


def test_frozen_weights_stay_out() -> None:
    params = named((3, 3), (2, 2))
    params[0][1].requires_grad_(False)
    assert [len(group["params"]) for group in optimizers.decay_groups(params, 0.1)] == [1]
    params[1][1].requires_grad_(False)
    with pytest.raises(ConfigError, match="no trainable weight"):
        optimizers.decay_groups(params, 0.1)


def test_8_bit_adam_follows_32_bit_adam() -> None:
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    start = torch.randn(64, 128)
    target = torch.randn(64, 128)
    ends = []
    for factory in (optimizers.adamw, optimizers.adamw_8bit):
        weight = nn.Parameter(start.clone())
        optimizer = factory([("w", weight)], lr=0.05, weight_decay=0.0)
        for _ in range(60):
            optimizer.zero_grad()
            (weight - target).square().sum().backward()
            optimizer.step()
        ends.append((weight.detach() - target).square().mean().item())
    assert ends[0] < 0.25 * (start - target).square().mean().item()
    assert ends[1] == pytest.approx(ends[0], rel=0.2)
    assert optimizer.state[weight]["state1"].dtype == torch.uint8


def test_8_bit_adam_without_bitsandbytes(monkeypatch) -> None:
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.startswith("bitsandbytes"):
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingExtra, match=r"posttrain\[quant\]"):
        optimizers.adamw_8bit(named((2, 2)), lr=1e-3)

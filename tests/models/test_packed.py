"""Linear layers computed from packed weights: the same numbers, nothing left behind, and ordinary products where packing does not fit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from posttrain.models import packed


class Scaled(nn.Linear):
    """Not a plain linear layer."""


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"plain": nn.Linear(64, 48), "other": Scaled(64, 48), "wide": nn.Linear(64, 48, dtype=torch.float64)})


@pytest.fixture
def products(monkeypatch) -> list[torch.Size]:
    """The shapes of what was multiplied with packed weights."""
    if not packed.available(torch.float32):
        pytest.skip("this PyTorch packs no weights")
    seen, multiply = [], packed._multiply
    monkeypatch.setattr(packed, "_multiply", lambda x, *rest: (seen.append(x.shape), multiply(x, *rest))[1])
    return seen


@pytest.mark.parametrize("shape", [(64,), (0, 64), (5, 1, 64), (2, 3, 64)])
def test_packed_layers_compute_the_same(model, products, shape):
    x = torch.randn(shape)
    with torch.no_grad():
        want = model["plain"](x)
        with packed.packed_linears(model):
            got = model["plain"](x)
            model["other"](x)
            model["wide"](x.double())
            model["plain"](torch.randn(64, 4).t())
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
    assert products == [x.shape, torch.Size([4, 64])], "a subclass and other types stay as they are"


def test_under_autocast_in_its_type_and_in_another_where_that_is_asked(model, products):
    x = torch.randn(7, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        want = model["plain"](x)
        with packed.packed_linears(model):
            got = model["plain"](x)
            with torch.autocast("cpu", enabled=False):
                wide = model["plain"](x)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, want)
    assert torch.equal(wide, torch.nn.functional.linear(x, model["plain"].weight, model["plain"].bias))
    assert len(products) == packed.available(torch.bfloat16)


def test_a_type_that_the_processor_has_no_kernel_for_is_multiplied_as_ever(model, products, monkeypatch):
    pack = packed._pack

    def refuse(weight):
        if weight.dtype == torch.bfloat16:
            raise RuntimeError("bf16 path needs the cpu support avx512")
        return pack(weight)

    monkeypatch.setattr(packed, "_pack", refuse)
    packed.available.cache_clear()
    x = torch.randn(7, 64)
    try:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            want = model["plain"](x)
            with packed.packed_linears(model):
                got = model["plain"](x)
            assert packed.packed_product(model["plain"].weight.bfloat16()) is None
            assert packed.packed_product(model["plain"].weight) is not None
    finally:
        packed.available.cache_clear()
    assert torch.equal(got, want)


def test_hooks_run_gradients_flow_and_nothing_outlives_an_error(model, products):
    heard = []
    model["plain"].register_forward_hook(lambda *_: heard.append(1))
    with packed.packed_linears(model):
        model["plain"](torch.randn(2, 64)).sum().backward()
        with torch.no_grad():
            model["plain"](torch.randn(2, 64))
    with pytest.raises(RuntimeError), torch.no_grad(), packed.packed_linears(model):
        model["plain"](torch.randn(2, 63))
    assert len(heard) == 2
    assert len(products) == 2
    assert model["plain"].weight.grad is not None
    assert not any("forward" in vars(module) for module in model.modules())


def test_compiled_layers_and_weights_of_other_kinds_are_left_alone(model, monkeypatch):
    assert not packed.packable(torch.randn(2, 3, 4))
    assert not packed.packable(torch.empty(0, 4))
    assert not packed.packable(torch.empty(2, 4, device="meta"))
    monkeypatch.setattr(model["other"], "_compiled_call_impl", model["other"].forward)
    with packed.packed_linears(model):
        assert "forward" not in vars(model["plain"])


def test_a_torch_without_the_operators_computes_as_before(model, monkeypatch, caplog):
    def missing(*_):
        raise AttributeError("no such operator")

    monkeypatch.setattr(packed, "_pack", missing)
    packed.available.cache_clear()
    with caplog.at_level("DEBUG", logger="posttrain"):
        assert packed.packed_product(model["plain"].weight) is None
        assert packed.packed_product(model["plain"].weight) is None
    packed.available.cache_clear()
    assert [record.message for record in caplog.records] == ["linear layers are not packed for decoding: no such operator"]

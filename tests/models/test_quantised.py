"""QLoRA on CPU: quantised in memory, trainable, exact after merging."""

from __future__ import annotations

import builtins
import copy

import pytest
import torch

from posttrain.errors import MissingExtra
from posttrain.models.counts import parameter_counts
from posttrain.models.loading import build_model
from posttrain.models.peft import apply_peft, merge
from posttrain.models.quantisation import block_linears, dequantise, is_quantised, quantisation_of, quantise

bnb = pytest.importorskip("bitsandbytes")


def quantised(conf, kind: str, name: str = "nano", **keys):
    return quantise(build_model(conf(name), dtype=torch.float32), kind=kind, **keys)


@pytest.mark.parametrize(("kind", "layer"), [("nf4", bnb.nn.Linear4bit), ("int8", bnb.nn.Linear8bitLt)])
def test_only_the_blocks_are_quantised(conf, kind, layer) -> None:
    model = quantised(conf, kind)
    names = block_linears(model)
    assert len(names) == 4 * 7
    assert all(isinstance(model.get_submodule(name), layer) for name in names)
    assert type(model.lm_head) is torch.nn.Linear
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert model.lm_head.weight.dtype == torch.float32
    assert not any(p.requires_grad for name in names for p in model.get_submodule(name).parameters())
    assert parameter_counts(model).total == 1_018_240


@pytest.mark.parametrize(("kind", "error"), [("nf4", 0.1), ("int8", 0.01)])
def test_rounding_is_as_fine_as_the_format(conf, kind, error) -> None:
    exact = build_model(conf("nano"), dtype=torch.float32)
    rounded = dequantise(quantised(conf, kind), dtype=torch.float32)
    for name in block_linears(exact):
        want, got = exact.get_submodule(name).weight, rounded.get_submodule(name).weight
        assert 0 < (want - got).norm() / want.norm() < error


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_gradients_are_those_of_the_rounded_weights(conf, ids, kind) -> None:
    model = quantised(conf, kind).train()
    plain = dequantise(copy.deepcopy(model), dtype=torch.float32).train()
    grads = []
    for each in (model, plain):
        inputs = each.get_input_embeddings()(ids).detach().requires_grad_()
        each(inputs_embeds=inputs, labels=ids, use_cache=False).loss.backward()
        grads.append(inputs.grad)
    torch.testing.assert_close(grads[0], grads[1], atol=1e-7, rtol=1e-3)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_training_after_an_evaluation_is_training(conf, ids, kind) -> None:
    """bitsandbytes repacks nf4 weights in evaluation on some processors, and gradients were wrong from then on."""
    model = apply_peft(build_model(conf("nano"), dtype=torch.float32), {"kind": "lora", "quantise": kind})

    def gradients() -> list[torch.Tensor]:
        model.train().zero_grad()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.requires_grad]

    before = gradients()
    with torch.no_grad():
        model.eval()(input_ids=ids, use_cache=False)
    after = gradients()
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("peft", ["qlora", "qlora_int8"])
@pytest.mark.parametrize("name", ["nano", "nano_moe", "nano_gemma"])
def test_qlora_trains_on_cpu(conf, ids, peft, name) -> None:
    config = conf(name, peft=peft)
    model = apply_peft(build_model(config, dtype=torch.float32), config["peft"]).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(10):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.8


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_merging_loses_nothing(conf, ids, logits, kind) -> None:
    model = apply_peft(build_model(conf("nano"), dtype=torch.float32), {"kind": kind, "quantise": "nf4"})
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    want = logits(model, ids)
    merged = merge(model)
    assert not is_quantised(merged)
    torch.testing.assert_close(logits(merged, ids), want, atol=1e-5, rtol=1e-4)


def test_what_was_quantised_is_known(conf) -> None:
    assert quantisation_of(build_model(conf("nano"), dtype=torch.float32)) is None
    assert quantisation_of(quantised(conf, "int8")) == {"kind": "int8", "keep": []}
    kept = ["model.layers.0.self_attn.q_proj"]
    assert quantisation_of(quantised(conf, "nf4", double=False, keep=kept)) == {"kind": "nf4", "double": False, "keep": kept}


def test_experts_stay_and_it_is_said(conf, caplog) -> None:
    quantised(conf, "nf4", "nano_moe")
    assert "experts.down_proj, experts.gate_up_proj" in caplog.text


def test_without_bitsandbytes(conf, monkeypatch) -> None:
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.startswith("bitsandbytes"):
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    model = build_model(conf("nano"), dtype=torch.float32)
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingExtra, match=r"posttrain\[quant\]"):
        quantise(model, kind="nf4")

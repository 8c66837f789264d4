"""RMS norms as one operation: only where they compute the same, and then in value, gradient and type."""

import copy

import pytest
import torch
import transformers as hf
from torch import nn
from transformers import AutoModelForCausalLM

from posttrain.models.norms import Rule, fuse_norms, rule_of

SMALL = dict(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
SHIFTED, PLAIN = Rule("eps", 1.0, False), Rule("variance_epsilon", 0.0, True)
FAMILIES = {
    "llama": (hf.LlamaConfig(**SMALL), 5, PLAIN),
    "qwen3": (hf.Qwen3Config(**SMALL, head_dim=8), 9, PLAIN),
    "gemma2": (hf.Gemma2Config(**SMALL, head_dim=8), 9, SHIFTED),
    "gemma3": (hf.Gemma3TextConfig(**SMALL, head_dim=8), 13, SHIFTED),
    "phi": (hf.PhiConfig(**SMALL), 0, None),  # layer norms
}


def model_of(config, seed=0):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():  # fresh norms are all ones or zeros, by which they could not be told apart
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.add_(0.3 * torch.randn_like(weight))
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_fused_norms_have_the_same_values_and_gradients(family):
    config, count, rule = FAMILIES[family]
    plain, fused = model_of(config), model_of(config)
    assert fuse_norms(fused) == count
    ids = torch.arange(24).view(2, 12) % 97
    outs = [model(ids).logits for model in (plain, fused)]
    torch.testing.assert_close(outs[1], outs[0], rtol=1e-5, atol=1e-5)
    for out in outs:
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    for (name, one), other in zip(plain.named_parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-5, msg=name)
    if rule is not None:
        assert rule_of(fused.model.norm) == rule_of(plain.model.norm) == rule


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize(
    ("x", "weight"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16)]
)
def test_types_and_rounding_are_those_of_the_family(family, x, weight):
    norm = model_of(FAMILIES[family][0]).model.norm.to(weight)
    given = torch.randn(5, 32).to(x)
    want = norm(given)
    assert fuse_norms(nn.ModuleList([norm])) == 1
    got = norm(given)
    assert got.dtype == want.dtype
    near = 1e-5 if x == torch.float32 else 2e-2  # the family rounds to 16 bits in the middle
    torch.testing.assert_close(got, want, rtol=near, atol=near)
    exact = norm.double()(given.double())
    assert (got.double() - exact).abs().max() <= (want.double() - exact).abs().max() * 1.01 + 1e-6


class Doubled(nn.Module):
    """Named like an RMS norm, and not one."""

    def __init__(self):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(8)), 1e-6

    def forward(self, x):
        return 2 * self.weight * x


class OtherNorm(Doubled):
    def forward(self, x):
        return self.weight * x / (x.pow(2).mean(-1, keepdim=True).sqrt() + self.eps)  # the epsilon outside the root


class GatedNorm(Doubled):
    def forward(self, x, gate):
        return self.weight * x * gate


def test_what_computes_otherwise_stays():
    odd = nn.ModuleList([Doubled(), OtherNorm(), GatedNorm(), nn.LayerNorm(8), nn.LayerNorm(8, bias=False)])
    kinds = [type(module) for module in odd]
    assert fuse_norms(odd) == 0
    assert [type(module) for module in odd] == kinds


def test_copies_hooks_and_names_stay():
    model = model_of(FAMILIES["qwen3"][0])
    kind, names = type(model.model.norm), list(model.state_dict())
    fuse_norms(model)
    norm = model.model.norm
    assert isinstance(norm, kind)
    assert (type(norm).__name__, list(model.state_dict())) == (kind.__name__, names)
    made = type(norm)
    assert fuse_norms(model) == 0, "there is nothing left to do"
    assert type(norm) is made
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.model.norm.weight.mul_(3)
    x = torch.randn(2, 32)
    torch.testing.assert_close(twin.model.norm(x), 3 * norm(x))
    seen = []
    norm.register_forward_hook(lambda *_: seen.append(1))
    norm(x)
    assert seen == [1]


def test_weights_on_a_device_that_is_not_the_default_one():
    model = model_of(FAMILIES["qwen3"][0])
    with torch.device("meta"):  # as where a strategy has models made on a device
        assert fuse_norms(model) == 9

"""The CUDA paths: attention backends, bf16, a whole run."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig, Qwen3Config

from posttrain.data.tree import collate, to_device, tree_of
from posttrain.errors import UserError
from posttrain.functional.head import HeadSpec
from posttrain.functional.logprobs import token_stats
from posttrain.models.attention import flex, segments, varlen
from posttrain.models.attention.backends import register
from posttrain.models.attention.layout import Scoring, layout_of
from posttrain.models.policy import PolicyModel
from posttrain.models.probe import probe
from posttrain.runs.compose import compose
from posttrain.runs.job import run_job
from posttrain.types import StepShare

SMALL = dict(
    vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=16
)
DEVICE = torch.device("cuda", 0)


CASES = [
    pytest.param(flex, True, {}, id="flex"),
    pytest.param(flex, True, {"window": 40}, id="flex-window"),
    pytest.param(flex, True, {"softcap": 5.0}, id="flex-softcap"),
    pytest.param(flex, True, {"window": 100, "softcap": 3.0}, id="flex-window-softcap"),
    pytest.param(flex, True, {"sinks": torch.tensor([0.5, -1.0, 2.0, 0.0])}, id="flex-sinks"),
    pytest.param(flex, False, {}, id="flex-packed"),
    pytest.param(varlen, False, {}, id="varlen"),
    pytest.param(varlen, False, {"window": 40}, id="varlen-window"),
]


def tree_on_device(shared=True, lengths=(90, 70, 50, 120)):
    rng = np.random.default_rng(0)
    prompt, a, b, other = (rng.integers(3, 97, n) for n in lengths)
    trained = lambda x: (np.concatenate([prompt, x]), np.repeat([0.0, 1.0], [len(prompt), len(x)]))  # noqa: E731
    first = [tree_of([trained(a), trained(b)])] if shared else [tree_of([trained(a)]), tree_of([trained(b)])]
    return to_device(collate([*first, tree_of([(other, np.ones(len(other)))])], StepShare(1.0, 2, 1)), DEVICE)


@pytest.mark.parametrize("width", [32, 256])
@pytest.mark.parametrize(("backend", "shared", "scoring"), CASES)
def test_backends_agree_with_segments_in_value_and_gradient(backend, shared, scoring, width):
    gen = torch.Generator(DEVICE).manual_seed(1)
    scored = Scoring(0.2, **{name: value.to(DEVICE) if name == "sinks" else value for name, value in scoring.items()})
    for lengths in ((90, 70, 50, 120), (128, 128, 256, 128), (700, 301, 44, 90)):
        tree = tree_on_device(shared, lengths)
        inputs = [torch.randn(1, h, len(tree.ids), width, generator=gen, device=DEVICE, dtype=torch.bfloat16) for h in (4, 2, 2)]
        results = []
        for module, dtype in ((segments, torch.float32), (backend, torch.bfloat16)):
            q, k, v = (x.to(dtype).requires_grad_() for x in inputs)
            out = module.attention(q, k, v, layout_of(tree, "any"), scored)
            out.float().square().sum().backward()
            results.append([out, q.grad, k.grad, v.grad])
        for wanted, found in zip(*results, strict=True):
            assert (wanted - found.float()).norm() < 1e-2 * wanted.norm(), lengths


def test_a_kernel_that_computes_something_else_is_refused(monkeypatch):
    layout = layout_of(tree_on_device(), "any")
    inputs = [torch.randn(1, h, 330, 48, device=DEVICE, dtype=torch.bfloat16) for h in (4, 2, 2)]
    right = flex._compiled()
    monkeypatch.setattr(flex, "_compiled", lambda: lambda q, k, v, **rest: right(q, k.roll(1, 2), v, **rest))
    with pytest.raises(UserError, match="does not compute attention"):
        flex.attention(*inputs, layout, Scoring(0.2))
    monkeypatch.undo()
    flex.attention(*inputs, layout, Scoring(0.2))


@pytest.mark.parametrize("config", [Qwen3Config(**SMALL), Gemma2Config(**SMALL), Gemma3TextConfig(**SMALL)])
def test_trees_are_exact_on_the_device(config):
    found = probe(AutoModelForCausalLM.from_config(config), device=DEVICE)
    assert found.layout == "tree"


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("attention", ["auto", "sdpa", "flex"])
@pytest.mark.parametrize(
    "config", [Qwen3Config(**SMALL), Gemma2Config(**SMALL), Gemma3TextConfig(**SMALL)], ids=lambda config: config.model_type
)
def test_gradients_under_autocast_are_those_of_float32(config, attention, shared):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).cuda()
    model.set_attn_implementation(register())
    tree, found = tree_on_device(shared), []
    towards = torch.randn(len(tree.ids), config.hidden_size, device=DEVICE)
    for asked, half in (("sdpa", False), (attention, True)):
        policy = PolicyModel(model, layout="tree", head=HeadSpec(), attention=asked)
        model.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            hidden, _ = policy.hidden(tree)
        (hidden.float() * towards).sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert (found[1] - found[0]).norm() < 3e-2 * found[0].norm()


def test_log_probabilities_in_bfloat16_stay_close_to_float32():
    hidden, weight = torch.randn(512, 256, device=DEVICE), torch.randn(5000, 256, device=DEVICE) / 16
    target = torch.randint(0, 5000, (512,), device=DEVICE)
    exact = token_stats(hidden, weight, target).logps
    rough = token_stats(hidden.bfloat16(), weight.bfloat16(), target).logps
    assert rough.dtype == torch.float32
    assert (exact - rough).abs().max() < 0.1


def test_a_run_in_bfloat16_learns(tmp_path):
    config = compose(
        ["hardware=auto", "data=arithmetic", "evaluation=none", "tracking=none", "max_steps=30", f"output_dir={tmp_path / 'run'}"]
    )
    assert config["precision"] == "bf16"
    assert run_job(config) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < 0.5 * losses[0]

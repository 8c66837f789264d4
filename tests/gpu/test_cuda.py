"""The CUDA paths: attention backends, bf16, a whole run."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig, Qwen3Config

from posttrain.data.tree import collate, to_device, tree_of
from posttrain.functional.logprobs import token_stats
from posttrain.models.attention import flex, segments, varlen
from posttrain.models.attention.layout import Scoring, layout_of
from posttrain.models.probe import probe
from posttrain.runs.compose import compose
from posttrain.runs.job import run_job
from posttrain.types import StepShare

SMALL = dict(
    vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=16
)
DEVICE = torch.device("cuda", 0)


def tree_on_device(shared=True):
    rng = np.random.default_rng(0)
    prompt, a, b, other = (rng.integers(3, 97, n) for n in (90, 70, 50, 120))
    trained = lambda x: (np.concatenate([prompt, x]), np.repeat([0.0, 1.0], [len(prompt), len(x)]))  # noqa: E731
    first = [tree_of([trained(a), trained(b)])] if shared else [tree_of([trained(a)]), tree_of([trained(b)])]
    return to_device(collate([*first, tree_of([(other, np.ones(120))])], StepShare(1.0, 2, 1)), DEVICE)


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("backend", [flex, varlen])
def test_backends_agree_with_segments_in_value_and_gradient(backend, window):
    tree = tree_on_device(shared=backend is flex)
    gen = torch.Generator(DEVICE).manual_seed(1)
    inputs = [torch.randn(1, h, len(tree.ids), 32, generator=gen, device=DEVICE, dtype=torch.bfloat16) for h in (4, 2, 2)]
    results = []
    for module in (segments, backend):
        q, k, v = (x.clone().requires_grad_() for x in inputs)
        out = module.attention(q, k, v, layout_of(tree, "any"), Scoring(0.2, window))
        out.float().square().sum().backward()
        results.append([out, q.grad, k.grad, v.grad])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=5e-2, atol=5e-2 * theirs.float().abs().max().item())


@pytest.mark.parametrize("config", [Qwen3Config(**SMALL), Gemma2Config(**SMALL), Gemma3TextConfig(**SMALL)])
def test_trees_are_exact_on_the_device(config):
    found = probe(AutoModelForCausalLM.from_config(config), device=DEVICE)
    assert found.layout == "tree"


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

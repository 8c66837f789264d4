"""The token tree against plain sequences: values, gradients, families, and the probe that guards them."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers as hf
from transformers import AutoModelForCausalLM, DeepseekV3Config, Qwen3Config

from posttrain.data.tree import collate, tree_of
from posttrain.models import probe as probing
from posttrain.models.attention import backends, blocked, flex, pieces, segments
from posttrain.models.attention.blockmask import block_mask
from posttrain.models.attention.layout import Scoring, layout_of
from posttrain.models.policy import PolicyModel, head_dims, neftune, sequence_lengths
from posttrain.models.probe import LayoutError, probe, quiet_transformers
from posttrain.types import StepShare

SMALL = dict(
    vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, pad_token_id=0
)
MOE = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
MLA = dict(num_key_value_heads=4, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, n_group=1, topk_group=1, q_lora_rank=16,
           kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=16, first_k_dense_replace=1)  # fmt: skip
LINEAR = dict(
    shared_expert_intermediate_size=32, linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=16, linear_value_head_dim=16
)
FAMILIES = {
    "qwen3": (hf.Qwen3Config, SMALL | dict(head_dim=16), "tree"),
    "llama": (hf.LlamaConfig, SMALL, "tree"),
    "gemma2": (hf.Gemma2Config, SMALL | dict(head_dim=16), "tree"),
    "gemma3": (hf.Gemma3TextConfig, SMALL | dict(head_dim=16, sliding_window=512), "tree"),
    "mistral": (hf.MistralConfig, SMALL | dict(sliding_window=4), "tree"),
    "phi3": (hf.Phi3Config, SMALL, "tree"),
    "phi": (hf.PhiConfig, SMALL, "tree"),
    "olmo2": (hf.Olmo2Config, SMALL, "tree"),
    "smollm3": (hf.SmolLM3Config, SMALL, "tree"),
    "qwen3_moe": (hf.Qwen3MoeConfig, SMALL | MOE, "tree"),
    "deepseek_v3": (hf.DeepseekV3Config, SMALL | MLA, "tree"),
    "gpt_oss": (hf.GptOssConfig, SMALL | dict(head_dim=16, num_local_experts=4, num_experts_per_tok=2), "tree"),
    "granite": (hf.GraniteConfig, SMALL | dict(logits_scaling=4.0), "tree"),
    "cohere": (hf.CohereConfig, SMALL | dict(logit_scale=0.25), "tree"),
    "gpt2": (hf.GPT2Config, dict(vocab_size=97, n_embd=64, n_layer=2, n_head=4), "tree"),
    "bloom": (hf.BloomConfig, dict(vocab_size=97, hidden_size=64, n_layer=2, n_head=4), "padded"),
    "qwen3_next": (hf.Qwen3NextConfig, SMALL | MOE | LINEAR | dict(head_dim=16), "padded"),
}


def model_of(family, **overrides):
    kind, arguments, layout = FAMILIES[family]
    with quiet_transformers(), torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(kind(**(arguments | overrides))).eval(), layout


def sample_tree():
    rng = np.random.default_rng(0)
    prompt, a, b, other = (rng.integers(3, 97, n) for n in (9, 7, 5, 12))
    trained = lambda x: (np.concatenate([prompt, x]), np.repeat([0.0, 1.0], [len(prompt), len(x)]))  # noqa: E731
    return collate([tree_of([trained(a), trained(b)]), tree_of([(other, np.ones(12))])], StepShare(23.0, 2, 1))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gets_its_fastest_exact_layout(family):
    model, layout = model_of(family)
    found = probe(model)
    assert found.layout == layout
    assert found.errors[layout] < 1e-5


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gemma3", "gpt_oss", "qwen3_moe", "deepseek_v3"])
def test_layouts_agree_in_loss_and_gradient(family):
    model, _ = model_of(family, initializer_range=0.3, **({"sliding_window": 5} if family == "gemma3" else {}))
    head = probe(model).head
    results = {}
    for layout in ("tree", "packed", "padded"):
        model.set_attn_implementation("eager" if layout == "padded" else backends.register())
        model.zero_grad()
        stats, _ = PolicyModel(model, layout=layout, head=head)(sample_tree(), entropy=True)
        (stats.logps.sum() + 0.1 * stats.entropy.sum()).backward()
        results[layout] = stats.logps.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]
    for layout in ("packed", "padded"):
        torch.testing.assert_close(results["tree"][0], results[layout][0], rtol=1e-4, atol=2e-5)
        for ours, theirs in zip(results["tree"][1], results[layout][1], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-4 * theirs.abs().max().item() + 1e-6)


def test_probe_notices_a_missing_softcap(monkeypatch):
    def forgetful(q, k, v, layout, scoring):
        return segments.attention(q, k, v, layout, replace(scoring, softcap=None))

    monkeypatch.setitem(backends.BACKENDS, "sdpa", forgetful)
    found = probe(model_of("gemma2")[0])
    assert found.layout == "padded"
    assert found.errors["tree"] > probing.TOLERANCE


def test_probe_notices_a_missing_window(monkeypatch):
    def forgetful(q, k, v, layout, scoring):
        return segments.attention(q, k, v, layout, replace(scoring, window=None))

    monkeypatch.setitem(backends.BACKENDS, "sdpa", forgetful)
    assert probe(model_of("gemma3")[0]).layout == "padded"


def test_a_layout_that_was_asked_for_is_never_swapped():
    with pytest.raises(LayoutError, match="qwen3_next"):
        probe(model_of("qwen3_next")[0], asked="tree")


def test_unknown_modifiers_of_attention_are_refused():
    q = torch.zeros(1, 1, 1, 4)
    tree = layout_of(collate([tree_of([(np.array([1]), np.array([0.0]))])], StepShare(1.0, 1, 1)), "sdpa")
    with pytest.raises(backends.UnsupportedAttention, match="position_bias"):
        backends.tree_attention(torch.nn.Identity(), q, q, q, None, token_tree=tree, position_bias=torch.zeros(1))
    with pytest.raises(backends.UnsupportedAttention, match="token_tree"):
        backends.tree_attention(torch.nn.Identity(), q, q, q, None)


def test_the_probe_disturbs_neither_random_state_nor_log_level():
    model, _ = model_of("qwen3")
    level = hf.utils.logging.get_verbosity()
    torch.manual_seed(3)
    want = torch.rand(3)
    torch.manual_seed(3)
    probe(model)
    assert torch.equal(torch.rand(3), want)
    assert hf.utils.logging.get_verbosity() == level
    assert logging.getLogger().level == logging.WARNING


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize(("softcap", "sinks"), [(None, None), (5.0, None), (None, torch.tensor([0.3, -1.0, 2.0, 0.0]))])
def test_flex_and_segment_backends_agree(window, softcap, sinks):
    tree = sample_tree()
    gen = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, heads, len(tree.ids), 16, generator=gen) for heads in (4, 2, 2))
    scoring = Scoring(0.25, window, softcap, sinks)
    ours = segments.attention(q, k, v, layout_of(tree, "sdpa"), scoring)
    layout = layout_of(tree, "flex")
    theirs = flex.attention(q, k, v, layout, scoring)
    mask = block_mask(layout, window=window, device=q.device)
    assert flex.difference(theirs, q, k, v, mask, scoring) < 1e-5
    assert flex.difference(theirs.roll(1, 2), q, k, v, mask, scoring) > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("asked", "device", "shared", "plain", "half", "more", "want"),
    [
        ("auto", "cpu", True, True, False, {}, "sdpa"),
        ("auto", "cuda", True, True, True, {}, "flex"),
        ("auto", "cuda", False, True, True, {}, "varlen"),
        ("auto", "cuda", False, False, True, {}, "flex"),
        ("auto", "cuda", False, True, False, {}, "flex"),
        ("varlen", "cuda", True, True, True, {}, "flex"),
        ("flex", "cuda", False, True, True, {}, "flex"),
        ("sdpa", "cuda", False, True, True, {}, "sdpa"),
        ("auto", "cuda", False, True, True, {"head_dims": (192, 128)}, "flex"),
        ("auto", "cuda", False, True, True, {"head_dims": (512, 512)}, "flex"),
        ("auto", "cuda", True, True, True, {"dropout": True}, "sdpa"),
        ("flex", "cuda", True, True, True, {"dropout": True}, "flex"),
    ],
)
def test_backend_rule(asked, device, shared, plain, half, more, want):
    about = {"head_dims": (64, 64)} | more
    assert backends.pick_backend(asked, device, shared=shared, plain=plain, half=half, **about) == want


def test_head_dims_of_plain_and_latent_attention():
    assert head_dims(Qwen3Config(hidden_size=64, num_attention_heads=4, head_dim=32)) == (32, 32)
    latent = DeepseekV3Config(qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128)
    assert head_dims(latent) == (192, 128)


def test_cuda_backends_need_cuda():
    with pytest.raises(ValueError, match="CUDA"):
        backends.pick_backend("flex", "cpu", shared=False, plain=True, head_dims=(64, 64), half=False)


def test_neftune_scales_with_each_sequences_own_length():
    tree = sample_tree()
    lengths = sequence_lengths(tree)
    assert lengths.tolist()[0] == [9] * 9 + [16] * 7 + [14] * 5 + [12] * 12
    torch.manual_seed(0)
    noise = neftune(torch.zeros(1, 33, 2000), lengths, alpha=5.0)
    bound = 5.0 / (lengths * 2000).sqrt()
    assert (noise.abs().amax(-1) <= bound).all()
    assert (noise.abs().amax(-1) > 0.99 * bound).all()


@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_gradient_checkpointing_changes_nothing(layout):
    model, _ = model_of("qwen3")
    model.set_attn_implementation("sdpa" if layout == "padded" else backends.register())
    policy = PolicyModel(model, layout=layout, head=probe(model).head).train()
    grads = []
    for on in (False, True):
        if on:
            model.activation_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        policy(sample_tree())[0].logps.sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_mixture_of_experts_has_its_load_balancing_loss():
    model, _ = model_of("qwen3_moe")
    policy = PolicyModel(model, layout="padded", head=probe(model).head, aux_coefficient=0.01)
    rows = collate([tree_of([(np.arange(3, 20), np.ones(17))])], StepShare(1.0, 1, 1))
    _, aux = policy(rows)
    want = model(input_ids=rows.ids[None], labels=rows.ids[None], output_router_logits=True, use_cache=False).aux_loss
    torch.testing.assert_close(aux, 0.01 * want)
    model.set_attn_implementation(backends.register())
    _, packed = PolicyModel(model, layout="tree", head=probe(model).head, aux_coefficient=0.01)(rows)
    torch.testing.assert_close(packed, aux)


@pytest.mark.parametrize("filled", [0.0, 1.125, 100.0])
@pytest.mark.parametrize("shape", [(4, 2, 16, 16), (6, 6, 8, 12), (6, 1, 8, 4)])
def test_blocked_attention_is_attention(shape, filled, monkeypatch):
    heads, groups, width, value_width = shape
    monkeypatch.setattr(pieces, "QUERY_BLOCK", 4)
    monkeypatch.setattr(pieces, "FILLED", filled)
    tree, gen = sample_tree(), torch.Generator().manual_seed(2)
    sizes = ((heads, width), (groups, width), (groups, value_width))
    inputs = [torch.randn(1, h, len(tree.ids), d, generator=gen, dtype=torch.float64) for h, d in sizes]
    results = []
    for limit in (0, 1024):
        monkeypatch.setattr(blocked, "LONGEST", limit)
        q, k, v = (x.clone().requires_grad_() for x in inputs)
        assert blocked.applies(q, layout_of(tree, "sdpa"), window=None) == (limit > 0)
        out = segments.attention(q, k, v, layout_of(tree, "sdpa"), Scoring(0.3))
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
        results.append([out, q.grad, k.grad, v.grad])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)

"""The native decoder on a CUDA device: exact in float32, close in bfloat16, the same draws as on the host."""

import subprocess
import sys
import warnings
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, DeepseekV3Config, Gemma2Config, GenerationConfig, Qwen3Config, Qwen3MoeConfig

from posttrain.functional.head import HeadSpec
from posttrain.models.policy import PolicyModel
from posttrain.rollout.base import Request, Sampling
from posttrain.rollout.native import Decoder
from posttrain.rollout.stops import Stops

SMALL = dict(vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
             head_dim=16, initializer_range=0.1)  # fmt: skip
MLA = dict(num_key_value_heads=4, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, n_group=1, topk_group=1, q_lora_rank=16,
           kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=12, first_k_dense_replace=1)  # fmt: skip
CONFIGS = [Qwen3Config(**SMALL), Gemma2Config(**SMALL, sliding_window=6), DeepseekV3Config(**(SMALL | MLA | {"head_dim": 8}))]
REQUESTS = [Request(np.random.default_rng(n).integers(3, 97, n), 4, n) for n in (9, 31, 2)]


def model_of(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.generation_config = GenerationConfig()
    return model


def decode(model, fixed=None, ends=(3, 4), cache_tokens=500, **sampling):
    head = HeadSpec(softcap=getattr(model.config, "final_logit_softcapping", None))
    policy = PolicyModel(model, layout="tree", head=head)
    return Decoder(policy, Sampling(max_new_tokens=80, **sampling), Stops(ends), cache_tokens=cache_tokens, fixed=fixed).run(REQUESTS)


def agree(one, other, within=1e-4):
    for a, b in zip(chain(*one), chain(*other), strict=True):
        assert a.tokens.tolist() == b.tokens.tolist()
        np.testing.assert_allclose(a.logps, b.logps, atol=within)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
@pytest.mark.parametrize("fixed", [True, False])
def test_samples_are_those_of_the_host(config, fixed):
    model = model_of(config)
    want = decode(model)
    agree(decode(model.cuda(), fixed), want)


@pytest.mark.parametrize("sampling", [{}, {"top_p": 0.9, "top_k": 40, "min_p": 0.01, "repetition_penalty": 1.2}, {"temperature": 0.0}])
def test_bfloat16_under_autocast_and_as_weights(sampling):
    model = model_of(CONFIGS[0]).cuda()
    with torch.autocast("cuda", torch.bfloat16):
        first, again = decode(model, **sampling), decode(model, **sampling)
        agree(first, decode(model, fixed=False, **sampling), within=2e-2)
    agree(first, again)
    second = decode(model.bfloat16(), **sampling)
    assert all(np.isfinite(answer.logps).all() for group in (*first, *second) for answer in group)


def test_graphs_are_made_anew_after_weights_change():
    model = model_of(CONFIGS[0]).cuda()
    with torch.autocast("cuda", torch.bfloat16):
        first = decode(model)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
        second = decode(model)
        agree(second, decode(model, fixed=False), within=2e-2)
    assert [answer.tokens.tolist() for answer in chain(*first)] != [answer.tokens.tolist() for answer in chain(*second)]


def waits(work):
    """What work came to, and how often the host waited for the device meanwhile."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            done = work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return done, sum("synchronizing" in str(warning.message) for warning in seen)


def test_the_host_waits_once_a_step():
    model = model_of(CONFIGS[0]).cuda()
    decode(model, ends=(), cache_tokens=2000)
    _, said = waits(torch.ones(1, device="cuda").cpu)  # some versions warn twice of one wait
    answers, found = waits(lambda: decode(model, ends=(), cache_tokens=2000))
    assert all(len(answer.tokens) == 80 for answer in chain(*answers))
    assert 80 <= found / said < 80 + 40  # what enters, and the one time that the cache grows


def test_every_shape_is_captured():
    """In a process of its own, as the first capture of all leaves something behind in its memory."""
    code = "from test_cuda_rollout import *; decode(model_of(CONFIGS[0]).cuda()); print('done')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent, check=True)
    assert done.stdout == "done\n"
    assert "without CUDA graphs" not in done.stderr


@pytest.mark.parametrize("config", [Qwen3MoeConfig(**SMALL, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)])
def test_a_forward_that_cannot_be_captured_is_run_as_it_is(config, caplog):
    model = model_of(config)
    want = decode(model)
    with caplog.at_level("WARNING"):
        agree(decode(model.cuda()), want)
    assert torch.ones(3, device="cuda").sum() == 3  # the device is none the worse for it


def test_refused_captures_are_told(caplog):
    model = model_of(CONFIGS[0]).cuda()
    want = decode(model, fixed=False)
    model.model.norm.register_forward_hook(lambda *_: float(torch.ones(1, device="cuda")) and None)
    with caplog.at_level("WARNING"):
        agree(decode(model), want)
    assert "without CUDA graphs" in caplog.text

"""The native decoder on a CUDA device: exact in float32, close in bfloat16, the same draws as on the host."""

from itertools import chain

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, DeepseekV3Config, Gemma2Config, GenerationConfig, Qwen3Config

from posttrain.functional.logprobs import HeadSpec
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


def decode(model, **sampling):
    head = HeadSpec(softcap=getattr(model.config, "final_logit_softcapping", None))
    policy = PolicyModel(model, layout="tree", head=head)
    return Decoder(policy, Sampling(max_new_tokens=80, **sampling), Stops([3, 4]), cache_tokens=500).run(REQUESTS)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_samples_are_those_of_the_host(config):
    model = AutoModelForCausalLM.from_config(config).eval()
    model.generation_config = GenerationConfig()
    want, got = decode(model), decode(model.cuda())
    for a, b in zip(chain(*want), chain(*got), strict=True):
        assert a.tokens.tolist() == b.tokens.tolist()
        np.testing.assert_allclose(a.logps, b.logps, atol=1e-4)


@pytest.mark.parametrize("sampling", [{}, {"top_p": 0.9, "top_k": 40, "min_p": 0.01, "repetition_penalty": 1.2}, {"temperature": 0.0}])
def test_bfloat16_under_autocast_and_as_weights(sampling):
    model = AutoModelForCausalLM.from_config(CONFIGS[0]).eval().cuda()
    with torch.autocast("cuda", torch.bfloat16):
        first = decode(model, **sampling)
    second = decode(model.bfloat16(), **sampling)
    assert all(np.isfinite(answer.logps).all() for group in (*first, *second) for answer in group)


def test_no_more_than_one_wait_a_step():
    model = AutoModelForCausalLM.from_config(CONFIGS[0]).eval().cuda()
    decode(model)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]) as seen:
        steps = max(len(answer.tokens) for group in decode(model) for answer in group)
    waits = sum(event.count for event in seen.key_averages() if event.key in ("aten::_local_scalar_dense", "aten::item"))
    assert waits <= steps

"""Tiny random models whose large weights make greedy answers decisive and a missing modifier of attention visible."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers as hf

from posttrain.models.policy import PolicyModel
from posttrain.models.probe import head_spec, quiet_transformers
from posttrain.rollout.base import Request, Sampling
from posttrain.rollout.native import Decoder
from posttrain.rollout.stops import Stops
from posttrain.types import Completion

SMALL = dict(vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
             pad_token_id=0, initializer_range=0.3)  # fmt: skip
MOE = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
MLA = dict(num_key_value_heads=4, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, n_group=1, topk_group=1, q_lora_rank=16,
           kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=12, first_k_dense_replace=1)  # fmt: skip
FAMILIES = {
    "qwen3": (hf.Qwen3Config, dict(head_dim=16)),
    "llama": (hf.LlamaConfig, {}),
    "gemma2": (hf.Gemma2Config, dict(head_dim=16, sliding_window=6)),
    "gemma3": (hf.Gemma3TextConfig, dict(head_dim=16, sliding_window=5)),
    "mistral": (hf.MistralConfig, dict(sliding_window=4)),
    "smollm3": (hf.SmolLM3Config, {}),
    "qwen3_moe": (hf.Qwen3MoeConfig, MOE),
    "deepseek_v3": (hf.DeepseekV3Config, MLA),
    "gpt_oss": (hf.GptOssConfig, dict(head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=6)),
    "cohere": (hf.CohereConfig, dict(logit_scale=0.25)),
}


def model_of(family: str, **overrides: Any) -> hf.PreTrainedModel:
    kind, arguments = FAMILIES[family]
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = hf.AutoModelForCausalLM.from_config(kind(**(SMALL | arguments | overrides)), attn_implementation="eager").eval()
    model.generation_config = hf.GenerationConfig()
    return model


def policy_of(model: hf.PreTrainedModel) -> PolicyModel:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        head = head_spec(model, torch.device("cpu"))
    return PolicyModel(model, layout="tree", head=head)


def requests_of(*lengths: int, samples: int = 2, seed: int = 0) -> list[Request]:
    rng = np.random.default_rng(seed)
    return [Request(rng.integers(3, 97, length), samples, 100 + place) for place, length in enumerate(lengths)]


def decode(
    policy: PolicyModel,
    requests: list[Request],
    *,
    stops: Any = (),
    cache_tokens: int = 100_000,
    fixed: bool | None = None,
    **sampling: Any,
) -> list[list[Completion]]:
    stops = stops if isinstance(stops, Stops) else Stops(stops)
    return Decoder(policy, Sampling(**({"max_new_tokens": 12} | sampling)), stops, cache_tokens, fixed=fixed).run(requests)


def tokens(answers: list[list[Completion]]) -> list[list[list[int]]]:
    return [[answer.tokens.tolist() for answer in group] for group in answers]

"""Which families' rows may be cut over ranks."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GptOssConfig, Qwen3Config, Qwen3MoeConfig

from posttrain.models.build import obstacles

SMALL = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
         "num_key_value_heads": 1, "head_dim": 8}  # fmt: skip
EXPERTS = {"num_local_experts": 2, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
CASES = {
    "dense": (Qwen3Config(**SMALL), "tree", []),
    "windows and soft-capping": (Gemma2Config(**SMALL), "tree", []),
    "no tree": (Qwen3Config(**SMALL), "packed", ["only token trees"]),
    "dropout": (Qwen3Config(**SMALL, attention_dropout=0.1), "tree", ["drops attention weights"]),
    "balanced experts": (Qwen3MoeConfig(**SMALL, **EXPERTS), "tree", ["load-balancing"]),
    "unbalanced experts": (Qwen3MoeConfig(**SMALL, **EXPERTS, router_aux_loss_coef=0.0), "tree", []),
    "sinks": (GptOssConfig(**SMALL, num_local_experts=2, router_aux_loss_coef=0.0), "tree", ["attention sinks"]),
}


@pytest.mark.parametrize(("config", "layout", "words"), CASES.values(), ids=CASES)
def test_a_row_is_cut_only_where_that_is_exact(config, layout, words):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    found = [problem.message for problem in obstacles(model, layout)]
    assert len(found) == len(words)
    assert all(word in message for word, message in zip(words, found, strict=True))

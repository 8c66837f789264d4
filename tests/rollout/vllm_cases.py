"""A tiny policy and requests for the tests of rollout=vllm."""

from __future__ import annotations

import socket
from typing import Any

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from posttrain.models.policy import PolicyModel
from posttrain.models.probe import head_spec
from posttrain.rollout.base import Request

PROMPTS = [np.array([72, 101, 108, 108, 111], np.int32), np.array([49, 43, 50, 61], np.int32), np.array([9], np.int32)]
REQUESTS = [Request(prompt, 3, 100 * place + 2**62) for place, prompt in enumerate(PROMPTS)]


def tiny() -> PolicyModel:
    """Peaked enough that answers differ from noise, spread enough that samples differ from each other."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=264, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, tie_word_embeddings=True, initializer_range=0.3,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).float()
    with torch.no_grad():
        return PolicyModel(model, layout="tree", head=head_spec(model, torch.device("cpu")))


def same(one: Any, other: Any) -> bool:
    return all(np.array_equal(a.tokens, b.tokens) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

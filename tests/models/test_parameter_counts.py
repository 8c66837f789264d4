"""Named models have the published numbers of weights, counted on the meta device."""

from __future__ import annotations

import pytest
import torch

from posttrain.models.counts import count_parameters, meta_model, parameter_counts
from posttrain.models.loading import build_model
from posttrain.models.peft import apply_peft

# Sums over the safetensors headers published with each model; tied embeddings once.
PUBLISHED = {
    "gemma_270m": 268_098_176,
    "gemma_1b": 999_885_952,
    "qwen3_0_6b": 596_049_920,
    "llama_3_2_1b": 1_235_814_400,
    "smollm3": 3_075_098_624,
    "deepseek_r1_distill_1_5b": 1_777_088_000,
}


@pytest.mark.parametrize(("name", "total"), PUBLISHED.items())
def test_published_totals(conf, name, total) -> None:
    assert count_parameters(conf(name)).total == total


@pytest.mark.parametrize("name", ["nano", "nano_moe", "nano_gemma"])
def test_nano_models_are_about_a_million(conf, name) -> None:
    assert 0.7e6 < count_parameters(conf(name)).total < 1.1e6


def test_nano_by_hand(conf) -> None:
    embedding = 264 * 128
    attention = 128 * 128 + 2 * 128 * 64 + 128 * 128 + 2 * 32
    layer = attention + 3 * 128 * 512 + 2 * 128
    counts = count_parameters(conf("nano"))
    assert (counts.total, counts.trainable, counts.embedding) == (embedding + 4 * layer + 128,) * 2 + (embedding,)


def test_untied_head_counts_as_embedding(conf) -> None:
    assert count_parameters(conf("deepseek_r1_distill_1_5b")).embedding == 2 * 151936 * 1536


@pytest.mark.parametrize("peft", ["lora", "dora", "pissa", "qlora", "qlora_int8"])
def test_adapters_are_counted_as_they_will_be(conf, peft) -> None:
    model = conf("nano", peft=peft)
    built = apply_peft(build_model(model, dtype=torch.float32), model["peft"])
    assert count_parameters(model) == parameter_counts(built)


def test_experts_are_counted_with_their_adapters(conf) -> None:
    model = conf("nano_moe", peft="lora")
    per_layer = 4 * 16 * (128 + 256) + 4 * 16 * (128 + 128)  # gate_up and down, four experts of rank 16
    attention = 16 * (2 * (128 + 128) + 2 * (128 + 64))
    assert count_parameters(model).trainable == 4 * (per_layer + attention)


@pytest.mark.parametrize("name", PUBLISHED)
def test_position_layers_of_the_families(conf, name) -> None:
    config = meta_model(conf(name)).config
    if name.startswith("gemma"):
        assert [kind == "full_attention" for kind in config.layer_types] == [(i + 1) % 6 == 0 for i in range(config.num_hidden_layers)]
        assert config.sliding_window == 512
    if name == "smollm3":
        assert config.no_rope_layers == [1, 1, 1, 0] * 9


def test_better_ai_keeps_what_its_seed_says(conf) -> None:
    big, tiny = (meta_model(conf(name)).config for name in ("better_ai_moe", "better_ai_moe_tiny"))
    assert (big.vocab_size, big.hidden_size, big.num_hidden_layers, big.num_experts) == (64000, 1536, 12, 16)
    assert (tiny.vocab_size, tiny.hidden_size, tiny.num_hidden_layers, tiny.num_experts) == (32000, 512, 4, 4)
    for config in (big, tiny):
        assert config.num_experts_per_tok == 2
        assert config.router_aux_loss_coef == 0.01
        assert config.num_attention_heads == 2 * config.num_key_value_heads
        assert config.shared_expert_intermediate_size > 0
        assert set(config.layer_types) == {"full_attention"}

"""Greedy decoding equals one plain loop a prompt, and leaves nothing behind on the model."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3ForCausalLM

from posttrain.errors import DataError
from posttrain.evaluation.generation import HELD, generator_of, greedy
from posttrain.models.attention import backends
from posttrain.models.decoding import left_padded, stop_tokens, until

PROMPTS = [np.random.default_rng(seed).integers(0, 256, length) for seed, length in enumerate((5, 31, 12, 1, 31, 18, 7))]


def said(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, prompts: list[np.ndarray], new: int, held: int = HELD
) -> list[list[int]]:
    """What a fresh generator answers."""
    return [answer.tolist() for answer in greedy(generator_of(model, tokenizer, held=held), prompts, max_new_tokens=new)]


def plain_greedy(model: torch.nn.Module, prompt: np.ndarray, new: int, stops: list[int]) -> list[int]:
    """Reference: the whole sequence again for every token, no cache, no batch."""
    ids = prompt.tolist()
    with torch.no_grad():
        for _ in range(new):
            token = int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
            if token in stops:
                break
            ids.append(token)
    return ids[len(prompt) :]


@pytest.mark.parametrize("held", [1, 60, 10_000])
def test_equals_the_plain_loop(random_model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, held: int) -> None:
    random_model.generation_config.eos_token_id = plain_greedy(random_model, PROMPTS[1], 3, [])[-1]
    stops = stop_tokens(random_model, tokenizer)
    got = said(random_model, tokenizer, PROMPTS, 9, held)
    assert got == [plain_greedy(random_model, prompt, 9, stops) for prompt in PROMPTS]
    assert any(len(answer) < 9 for answer in got), "the stop token must matter in this test"
    assert any(len(answer) == 9 for answer in got), "and so must the length"


def test_stops_where_the_model_was_taught_to(trained_model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    text = tokenizer.apply_chat_template([{"role": "user", "content": "2+2?"}], add_generation_prompt=True, tokenize=False)
    answers = said(trained_model, tokenizer, [np.array(tokenizer(text)["input_ids"])], 40)
    assert tokenizer.decode(answers[0]) == "It is 4."


def test_a_generation_config_that_samples_is_overruled_and_kept(random_model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    expected = plain_greedy(random_model, PROMPTS[0], 8, [3, *stop_tokens(random_model, tokenizer)])
    asked = GenerationConfig(
        do_sample=True, temperature=2.0, top_k=50, repetition_penalty=1.8, suppress_tokens=[expected[0]], eos_token_id=3
    )
    random_model.generation_config = asked
    assert said(random_model, tokenizer, PROMPTS, 8)[0] == expected
    assert random_model.generation_config is asked
    assert 3 in stop_tokens(random_model, tokenizer)


def test_leaves_no_trace(random_model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    expected = said(random_model, tokenizer, PROMPTS, 6)
    generator = generator_of(random_model, tokenizer)
    random_model.train()
    random_model.model.layers[0].eval()
    random_model.set_attn_implementation(backends.register())
    name = random_model.config._attn_implementation
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    assert [answer.tolist() for answer in greedy(generator, PROMPTS, max_new_tokens=6)] == expected
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()
    assert before[2] == random.getstate()
    assert random_model.config._attn_implementation == name != "sdpa"
    assert random_model.training
    assert not random_model.model.layers[0].training
    assert random_model.model.layers[1].training
    assert all(p.requires_grad for p in random_model.parameters())


def test_puts_everything_back_after_an_error(random_model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    generator = generator_of(random_model, tokenizer)
    random_model.train()
    config = random_model.generation_config
    with pytest.raises(IndexError):
        greedy(generator, [[10_000_000]], max_new_tokens=2)
    assert random_model.training
    assert random_model.generation_config is config


def test_an_adapter_takes_part(random_model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    base = said(random_model, tokenizer, PROMPTS, 8)
    adapted = get_peft_model(random_model, LoraConfig(r=4, lora_dropout=0.5, target_modules=["q_proj", "o_proj", "down_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(0))
    generator = generator_of(adapted, tokenizer)
    adapted.train()
    got = [answer.tolist() for answer in greedy(generator, PROMPTS, max_new_tokens=8)]
    assert adapted.training
    adapted.eval()
    assert got == [plain_greedy(adapted, prompt, 8, stop_tokens(adapted, tokenizer)) for prompt in PROMPTS]
    assert got != base


def test_no_prompts_and_empty_prompts(random_model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    generator = generator_of(random_model, tokenizer)
    assert greedy(generator, [], max_new_tokens=4) == []
    with pytest.raises(DataError, match="prompt 1"):
        greedy(generator, [[1], []], max_new_tokens=4)


def test_end_of_turn_tokens_are_stops(random_model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    stops = stop_tokens(random_model, tokenizer)
    assert {tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.convert_tokens_to_ids("<|endoftext|>")} <= set(stops)
    assert tokenizer.pad_token_id not in stops


def test_until_and_left_padding() -> None:
    assert until([1, 2, 3, 2], [2, 9]) == [1]
    assert until([1, 2], []) == [1, 2]
    ids, mask = left_padded([[1, 2, 3], np.array([4])], pad=0)
    assert ids.tolist() == [[1, 2, 3], [0, 0, 4]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_two_hundred_prompts_take_seconds(random_model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    prompts = [np.random.default_rng(i).integers(0, 256, 10 + i % 40) for i in range(200)]
    start = time.perf_counter()
    answers = said(random_model, tokenizer, prompts, 64)
    assert max(len(answer) for answer in answers) == 64
    assert time.perf_counter() - start < 30.0

"""Tiny real models: one with random weights, one that was overfitted to two questions and so has something to say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from posttrain.models.tokenizers import byte_tokenizer

KNOWN = {"2+2?": "It is 4.", "3+5?": "It is 8."}


def tiny_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=24, max_position_embeddings=512, initializer_range=0.1, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config).eval()


def chat_ids(tokenizer: PreTrainedTokenizerFast, question: str) -> list[int]:
    text = tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture(scope="session")
def known() -> dict[str, str]:
    return KNOWN


@pytest.fixture(scope="session")
def ask(tokenizer: PreTrainedTokenizerFast) -> Callable[[str], list[int]]:
    """Question -> prompt ids."""
    return lambda question: chat_ids(tokenizer, question)


@pytest.fixture
def random_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    return tiny_model(tokenizer)


@pytest.fixture(scope="session")
def trained_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """Answers the questions of `KNOWN` by heart."""
    model = tiny_model(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rows = []
    for question, answer in KNOWN.items():
        prompt = chat_ids(tokenizer, question)
        target = [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]
        rows.append((torch.tensor([prompt + target]), torch.tensor([[-100] * len(prompt) + target])))
    for _ in range(60):
        optimizer.zero_grad()
        sum(model(input_ids=ids, labels=labels).loss for ids, labels in rows).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="session")
def run_dir(trained_model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose artifact is the trained model."""
    folder = tmp_path_factory.mktemp("run")
    trained_model.save_pretrained(folder / "artifact")
    tokenizer.save_pretrained(folder / "artifact")
    return folder


@pytest.fixture(scope="session")
def other(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model that has learnt nothing."""
    folder = tmp_path_factory.mktemp("other")
    tiny_model(tokenizer, seed=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

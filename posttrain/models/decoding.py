"""What every way of decoding shares: where answers end, how prompts are batched, and a model that is left as it was found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from posttrain.errors import DataError, Problem
from posttrain.models.tokenizers import end_token_ids

Prompt = np.ndarray | Sequence[int]


def stop_tokens(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end an answer: those of the tokenizer and its chat template, and those of the model's generation config."""
    own = [end for config in _generation_configs(model) for end in _as_list(config.eos_token_id)]
    return list(dict.fromkeys([*end_token_ids(tokenizer), *own]))


def until(tokens: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    """`tokens` before the first stop token."""
    stops = frozenset(stop_ids)
    end = next((place for place, token in enumerate(tokens) if token in stops), len(tokens))
    return list(tokens[:end])


@contextmanager
def decoding_mode(model: nn.Module, implementation: str | None = None) -> Iterator[None]:
    """Evaluation mode, another attention, and neutral generation defaults; all put back at the end.

    implementation: the attention's name; None for one that honours padding masks.

    A model's own generation config may ask for sampling or a repetition penalty, which would not be greedy decoding. Under autocast
    weights are cast once in here, whatever the trainer's autocast does.
    """
    caching = torch.is_autocast_cache_enabled()
    training = {module: module.training for module in model.modules()}
    cores = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    attention = [(core, core.config._attn_implementation) for core in cores]
    owners = [(module, vars(module)["generation_config"]) for module in model.modules() if "generation_config" in vars(module)]
    try:
        torch.set_autocast_cache_enabled(True)
        model.eval()
        for core, name in attention:
            wanted = implementation or plain_attention(core)
            if wanted != name:
                core.set_attn_implementation(wanted)
        for owner, _ in owners:
            vars(owner)["generation_config"] = GenerationConfig()
        yield
    finally:
        torch.clear_autocast_cache()  # casts of weights made meanwhile carry no gradient to them
        torch.set_autocast_cache_enabled(caching)
        for owner, config in owners:
            vars(owner)["generation_config"] = config
        for core, name in attention:
            core.set_attn_implementation(name)
        for module, mode in training.items():
            module.training = mode


def plain_attention(model: PreTrainedModel) -> str:
    """An implementation that reads padding masks: the model's own if it is one, else the best one its family has."""
    own = model.config._attn_implementation
    return own if own in {"sdpa", "eager"} else "sdpa" if model._supports_sdpa else "eager"


def left_padded(prompts: Sequence[Prompt], pad: int) -> tuple[Tensor, Tensor]:
    """Prompts as one batch with padding on the left: ids and mask, both int64 [B, longest]."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), longest), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.as_tensor(np.asarray(prompt, dtype=np.int64))
        mask[row, longest - len(prompt) :] = 1
    return ids, mask


def batches(lengths: Sequence[int], max_new_tokens: int, batch_tokens: int) -> Iterator[list[int]]:
    """Indices of prompts, longest first, in groups whose padded size with answers stays within `batch_tokens`."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    while order:
        rows = max(1, batch_tokens // (lengths[order[0]] + max_new_tokens))
        yield order[:rows]
        order = order[rows:]


def refuse_empty(prompts: Sequence[Prompt]) -> None:
    """Raises DataError for the first prompt without tokens."""
    empty = [index for index, prompt in enumerate(prompts) if len(prompt) == 0]
    if empty:
        raise DataError(
            Problem(f"prompt {empty[0]}", "has no tokens, so nothing can follow it", "check the chat template with `posttrain data`")
        )


def _generation_configs(model: nn.Module) -> list[GenerationConfig]:
    found = [vars(module).get("generation_config") for module in model.modules()]
    return [config for config in found if isinstance(config, GenerationConfig)]


def _as_list(value: int | Sequence[int] | None) -> list[int]:
    if value is None:
        return []
    return [value] if isinstance(value, int) else list(value)

"""Greedy decoding of many prompts: batched, deterministic, and without leaving a trace on the model that is being trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from posttrain.rollout.decoding import Prompt, batches, decoding_mode, left_padded, refuse_empty, stop_tokens, until


def greedy(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    batch_tokens: int = 16384,
    stop_ids: Sequence[int] | None = None,
) -> list[list[int]]:
    """The most likely continuation of every prompt, token by token, in the order of `prompts`.

    Args:
        model: a transformers causal LM, or a PEFT model around one.
        prompts: token ids; of this rank only when there are several.
        max_new_tokens: most tokens of an answer.
        batch_tokens: most tokens, prompt and answer, that a batch holds; one prompt is always taken.
        stop_ids: tokens that end an answer; None = `stop_tokens`.

    Returns:
        Token ids of each answer, up to the first stop token, which is left out.

    Raises:
        DataError: a prompt has no token.
    """
    refuse_empty(prompts)
    ends = list(stop_tokens(model, tokenizer) if stop_ids is None else stop_ids)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    config = GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False, use_cache=True, eos_token_id=ends or None, pad_token_id=pad)
    answers: list[list[int]] = [[] for _ in prompts]
    with decoding_mode(model):
        for batch in batches([len(p) for p in prompts], max_new_tokens, batch_tokens):
            generated = _generate(model, [prompts[i] for i in batch], pad, config)
            for index, tokens in zip(batch, generated, strict=True):
                answers[index] = until(tokens, ends)
    return answers


@torch.no_grad()
def _generate(model: Any, prompts: Sequence[Prompt], pad: int, config: GenerationConfig) -> list[list[int]]:
    """New tokens of one batch of prompts, padded on the left."""
    device = next(model.parameters()).device
    ids, mask = left_padded(prompts, pad)
    output = model.generate(input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=config)
    return output[:, ids.shape[1] :].tolist()

"""The generators that evaluations ask, and greedy answers of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from posttrain.models.decoding import Prompt, plain_attention
from posttrain.models.policy import PolicyModel, causal_lm
from posttrain.models.probe import probe
from posttrain.rollout.base import Generator, Request, Sampling
from posttrain.rollout.native import NativeGenerator
from posttrain.rollout.plain import TransformersGenerator

HELD = 16384  # tokens, prompts and answers at their full length, that are answered at once: an evaluation must fit beside a training


def generator_of(model: nn.Module, tokenizer: PreTrainedTokenizerBase, *, held: int = HELD) -> Generator:
    """Of a model that stands alone: our decoder, which computes a prompt once for all its answers.

    held: tokens, prompts and answers, that are answered at once. Raises LayoutError if no layout is exact for the family.
    """
    core = causal_lm(model)
    core.set_attn_implementation(plain_attention(core))
    found = probe(core, device=next(model.parameters()).device)
    return attached(PolicyModel(model, layout=found.layout, head=found.head), tokenizer, held=held)


def attached(policy: PolicyModel, tokenizer: PreTrainedTokenizerBase, *, cut: bool = False, held: int = HELD) -> Generator:
    """Of a policy, also one in training.

    cut: whether its layers are cut over ranks that answer together, which transformers' own generation knows how to run.
    """
    generator: Generator = TransformersGenerator(batch_tokens=held) if cut else NativeGenerator(cache_tokens=held)
    generator.attach(policy, tokenizer)
    return generator


def greedy(generator: Generator, prompts: Sequence[Prompt], *, max_new_tokens: int) -> list[np.ndarray]:
    """The most likely continuation of every prompt, token by token, without the token that ended it, in the order of `prompts`.

    max_new_tokens: most tokens of an answer. Raises DataError for a prompt without a token.
    """
    requests = [Request(np.asarray(prompt), 1, 0) for prompt in prompts]
    found = generator.generate(requests, sampling=Sampling(max_new_tokens, temperature=0.0))
    return [answer.tokens[: len(answer.tokens) - (answer.finish == "stop")] for (answer,) in found]

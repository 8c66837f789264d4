"""Sampling through transformers' generate gives the decoder's answers, for families that the decoder serves and for others."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch
from families import model_of, requests_of, tokens

from posttrain.errors import DataError
from posttrain.functional.head import HeadSpec
from posttrain.models.policy import PolicyModel
from posttrain.models.tokenizers import byte_tokenizer
from posttrain.rollout.base import Request, Sampling
from posttrain.rollout.native import NativeGenerator
from posttrain.rollout.plain import TransformersGenerator

OPTIONS = [{}, {"temperature": 0.0}, {"temperature": 1.5, "top_k": 30}, {"top_p": 0.8, "repetition_penalty": 1.3}, {"stop": ["q", "ab"]}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_both_generators_give_the_same_answers(options):
    tokenizer = byte_tokenizer()
    model = model_of("gemma3", vocab_size=len(tokenizer), initializer_range=0.1)
    model.generation_config.eos_token_id = list(range(100, 110))
    policy = PolicyModel(model, layout="tree", head=HeadSpec())
    requests = requests_of(9, 20, 2, samples=3)
    results = []
    for generator in (NativeGenerator(max_new_tokens=15, **options), TransformersGenerator(max_new_tokens=15, batch_tokens=120, **options)):
        generator.attach(policy.train(), tokenizer)
        results.append(generator.generate(requests))
        assert model.training
    assert tokens(results[0]) == tokens(results[1])
    for ours, theirs in zip(*(chain(*groups) for groups in results), strict=True):
        assert ours.finish == theirs.finish
        np.testing.assert_allclose(ours.logps, theirs.logps, atol=1e-5)


def test_sampling_of_a_call_and_empty_prompts():
    tokenizer = byte_tokenizer()
    model = model_of("qwen3", vocab_size=len(tokenizer))
    generator = TransformersGenerator(max_new_tokens=15)
    generator.attach(PolicyModel(model, layout="tree", head=HeadSpec()), tokenizer)
    state = torch.get_rng_state()
    answers = generator.generate(requests_of(4), sampling=Sampling(max_new_tokens=2))
    assert torch.equal(state, torch.get_rng_state())
    assert [len(answer.tokens) for answer in answers[0]] == [2, 2]
    assert generator.generate([]) == []
    with pytest.raises(DataError, match="prompt 0"):
        generator.generate([Request(np.zeros(0, np.int64), 1, 0)])

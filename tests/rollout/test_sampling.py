"""Draws have the model's probabilities, truncation is transformers', and random numbers belong to samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import decode, model_of, policy_of, requests_of
from scipy.stats import chisquare, kstest
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from posttrain.rollout.base import Sampling
from posttrain.rollout.draws import sample_keys, uniforms
from posttrain.rollout.sampling import candidates, invert, penalised, sample

CHOICES = [{}, {"top_k": 7}, {"top_p": 0.8}, {"min_p": 0.1}, {"top_k": 20, "top_p": 0.7, "min_p": 0.05}, {"temperature": 0.6}, {"top_p": 0.01},
           {"temperature": 1.7, "repetition_penalty": 1.4, "top_p": 0.9}]  # fmt: skip


def logits_of(rows: int, vocabulary: int = 97) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(0)) * 2


def warped(logits: torch.Tensor, ids: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Probabilities [B, V] by transformers' processors, in its order."""
    steps = LogitsProcessorList()
    if sampling.penalises:
        steps.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    steps.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k is not None:
        steps.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        steps.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p > 0:
        steps.append(MinPLogitsWarper(sampling.min_p))
    return steps(ids, logits.clone()).softmax(-1)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_probabilities_after_truncation_are_those_of_transformers(choice):
    sampling, logits = Sampling(**choice), logits_of(16)
    ids = torch.randint(0, 97, (16, 9), generator=torch.Generator().manual_seed(1))
    seen = torch.zeros(16, 97, dtype=torch.bool).scatter_(1, ids, True)
    steered = penalised(logits, seen, sampling.repetition_penalty) if sampling.penalises else logits
    values, index = candidates(steered / sampling.temperature, sampling)
    probs = values.softmax(-1)
    got = probs if index is None else torch.zeros(16, 97).scatter_(1, index, probs)
    torch.testing.assert_close(got, warped(logits, ids, sampling), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_draws_follow_the_probabilities(choice):
    sampling, draws = Sampling(**choice), 20_000
    logits, ids = logits_of(1), torch.tensor([[4, 9, 31]])
    seen = torch.zeros(1, 97, dtype=torch.bool).scatter_(1, ids, True) if sampling.penalises else None
    uniform = torch.from_numpy(uniforms(sample_keys(3, draws), np.zeros(draws, np.int64)))
    tokens, logps, drawn = sample(logits.expand(draws, -1).clone(), uniform, sampling, None if seen is None else seen.expand(draws, -1))
    want = warped(logits, ids, sampling)[0].double().numpy()
    counts = np.bincount(tokens.numpy(), minlength=97)
    assert counts[want == 0].sum() == 0
    often = want * draws >= 5
    if often.sum() > 1:
        found = np.append(counts[often], counts[~often].sum()) if (~often & (want > 0)).any() else counts[often]
        expected = np.append(want[often], want[~often].sum()) if len(found) > often.sum() else want[often]
        assert chisquare(found, expected / expected.sum() * found.sum()).pvalue > 1e-3
    plain = (logits / sampling.temperature).log_softmax(-1)[0]
    torch.testing.assert_close(logps, plain[tokens], rtol=1e-5, atol=1e-5)
    if sampling.temperature:
        torch.testing.assert_close(drawn.exp(), torch.from_numpy(want)[tokens].float(), rtol=1e-4, atol=1e-6)


def test_a_models_answers_have_its_probabilities():
    """Pairs of tokens over a vocabulary of 12, against the exact probabilities of all 144."""
    model = model_of("llama", vocab_size=100, initializer_range=0.06)
    model.lm_head.weight.data[12:] = 0.0
    model.lm_head.weight.data[:12] *= 4
    policy, request = policy_of(model), requests_of(6, samples=6000)[0]
    answers = decode(policy, [request], max_new_tokens=2, top_k=None)[0]
    with torch.no_grad():
        ids = torch.from_numpy(request.prompt)
        first = model(input_ids=ids[None]).logits[0, -1].softmax(-1)
        after = model(input_ids=torch.stack([torch.cat([ids, torch.tensor([t])]) for t in range(100)])).logits[:, -1].softmax(-1)
    want = (first[:, None] * after).double().numpy().ravel()
    counts = np.zeros(10_000)
    np.add.at(counts, [answer.tokens[0] * 100 + answer.tokens[1] for answer in answers], 1)
    often = want * len(answers) >= 5
    found, expected = np.append(counts[often], counts[~often].sum()), np.append(want[often], want[~often].sum())
    assert often.sum() > 20
    assert chisquare(found, expected / expected.sum() * found.sum()).pvalue > 1e-3


@pytest.mark.parametrize("vocabulary", [3, 256, 257, 1000])
def test_the_whole_range_of_random_numbers_is_covered(vocabulary):
    logits = torch.zeros(vocabulary, vocabulary)
    middle = (torch.arange(vocabulary, dtype=torch.float64) + 0.5) / vocabulary
    assert sample(logits, middle, Sampling())[0].tolist() == list(range(vocabulary))
    ends = torch.tensor([2.0**-49, 1 - 2.0**-49], dtype=torch.float64)
    assert sample(logits[:1].expand(2, -1).clone(), ends, Sampling())[0].tolist() == [0, vocabulary - 1]


def test_a_token_without_mass_is_never_drawn():
    masses = torch.zeros(4096, 2, 256)
    masses[:, 0, 7], masses[:, 1, 3] = 1e-3, 0.3
    uniform = (torch.arange(4096, dtype=torch.float64) + 0.5) / 4096
    assert set(invert(masses, masses.sum(-1).double(), uniform).tolist()) == {7, 259}


def test_random_numbers_are_uniform_and_independent():
    keys = np.concatenate([sample_keys(seed, 8) for seed in range(50)])
    assert len(set(keys.tolist())) == 400
    table = np.stack([uniforms(keys, np.full(400, step)) for step in range(50)])
    assert table.min() > 0
    assert table.max() < 1
    assert kstest(table.ravel(), "uniform").pvalue > 1e-3
    for a, b in ((table[:-1], table[1:]), (table[:, :-1], table[:, 1:])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.03
    assert uniforms(keys[5:6], np.array([7]))[0] == table[7, 5]
    assert sample_keys(-1, 1) == sample_keys(2**64 - 1, 1)

"""The native decoder against transformers' generate and the trainer, its independence of what else is in the batch, and its manners."""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
import transformers as hf
from families import FAMILIES, decode, model_of, policy_of, requests_of, tokens
from peft import LoraConfig, get_peft_model

from posttrain.data.tree import collate, tree_of
from posttrain.errors import DataError
from posttrain.models.attention import backends
from posttrain.models.policy import PolicyModel
from posttrain.models.tokenizers import byte_tokenizer
from posttrain.rollout import attention
from posttrain.rollout.base import Request, Sampling
from posttrain.rollout.native import NativeGenerator, alike
from posttrain.rollout.stops import Stops
from posttrain.types import StepShare

MIXED = (9, 23, 1, 14)


def generated(model: torch.nn.Module, prompt: np.ndarray, new: int) -> list[int]:
    ids = torch.from_numpy(prompt)[None]
    config = hf.GenerationConfig(max_new_tokens=new, do_sample=False, pad_token_id=0, eos_token_id=None)
    return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)[0, len(prompt) :].tolist()


def trainer_logps(policy: PolicyModel, request: Request, answers: list, temperature: float) -> list[np.ndarray]:
    """What the policy's forward computes, each answer after its own copy of the prompt's tree."""
    policy = PolicyModel(policy.model, layout="tree", head=replace(policy.head, temperature=temperature))
    policy.causal_lm.set_attn_implementation(backends.register())
    out = []
    for answer in answers:
        ids = np.concatenate([request.prompt, answer.tokens])
        weights = np.repeat([0.0, 1.0], [len(request.prompt), len(answer.tokens)])
        with torch.no_grad():
            stats, _ = policy(collate([tree_of([(ids, weights)])], StepShare(1.0, 1, 1)))
        out.append(stats.logps.numpy())
    policy.causal_lm.set_attn_implementation("eager")
    return out


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_are_those_of_generate(family):
    model = model_of(family)
    requests = requests_of(*MIXED)
    got = tokens(decode(policy_of(model), requests, temperature=0.0, cache_tokens=90))
    for request, answers in zip(requests, got, strict=True):
        want = generated(model, request.prompt, 12)
        assert answers == [want, want]


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gemma3", "deepseek_v3", "gpt_oss"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_log_probabilities_are_the_trainers(family, temperature):
    policy = policy_of(model_of(family, initializer_range=0.1))
    requests = requests_of(*MIXED, samples=3)
    for request, group in zip(requests, decode(policy, requests, temperature=temperature, top_p=0.9), strict=True):
        for answer, want in zip(group, trainer_logps(policy, request, group, temperature), strict=True):
            assert answer.logps.dtype == np.float32
            np.testing.assert_allclose(answer.logps, want, rtol=1e-5, atol=1e-5)


def test_greedy_log_probabilities_have_temperature_one():
    policy = policy_of(model_of("qwen3", initializer_range=0.1))
    request = requests_of(7, samples=1)[0]
    group = decode(policy, [request], temperature=0.0)[0]
    np.testing.assert_allclose(group[0].logps, trainer_logps(policy, request, group, 1.0)[0], atol=1e-5)


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_a_sample_is_the_same_alone_and_in_a_crowd(family):
    policy = policy_of(model_of(family, initializer_range=0.1))
    requests = requests_of(*MIXED, 40, 3, samples=5)
    ends = list(range(3, 15))  # lengths vary
    crowd = tokens(decode(policy, requests, stops=ends, max_new_tokens=40))
    assert len({len(answer) for group in crowd for answer in group}) > 5
    for bound in (1, 150, 400):
        assert tokens(decode(policy, requests, stops=ends, max_new_tokens=40, cache_tokens=bound)) == crowd
    assert tokens(decode(policy, requests[::-1], stops=ends, max_new_tokens=40))[::-1] == crowd
    alone = [tokens(decode(policy, [request], stops=ends, max_new_tokens=40))[0] for request in requests]
    assert alone == crowd
    fewer = tokens(decode(policy, [replace(requests[1], samples=2)], stops=ends, max_new_tokens=40))[0]
    assert fewer == crowd[1][:2]
    other = tokens(decode(policy, [replace(requests[1], seed=7)], stops=ends, max_new_tokens=40))[0]
    assert other != crowd[1]


def test_answers_longer_than_the_first_room_and_rows_that_leave():
    policy = policy_of(model_of("gemma2", initializer_range=0.1))
    requests = requests_of(5, 17, samples=9)
    group = decode(policy, requests, stops=[3, 4], max_new_tokens=150)
    lengths = [len(answer.tokens) for answers in group for answer in answers]
    assert max(lengths) > 130
    assert min(lengths) < 64
    for request, answers in zip(requests, group, strict=True):
        for answer, want in zip(answers, trainer_logps(policy, request, answers, 1.0), strict=True):
            np.testing.assert_allclose(answer.logps, want, atol=2e-5)


def test_ends_and_limits():
    policy = policy_of(model_of("qwen3", initializer_range=0.1))
    requests = requests_of(9, samples=40)
    for answer in decode(policy, requests, stops=range(3, 20), max_new_tokens=6)[0]:
        inside = np.isin(answer.tokens, np.arange(3, 20))
        assert not inside[:-1].any()
        assert answer.finish == ("stop" if inside[-1] else "length")
        assert len(answer.tokens) == len(answer.logps) <= 6
        assert answer.finish == "stop" or len(answer.tokens) == 6
    one = decode(policy, requests, max_new_tokens=1)[0]
    assert [len(answer.tokens) for answer in one] == [1] * 40
    assert decode(policy, []) == []
    assert decode(policy, [replace(requests[0], samples=0)]) == [[]]
    with pytest.raises(DataError, match="prompt 1"):
        decode(policy, [requests[0], Request(np.zeros(0, np.int64), 2, 0)])


def test_penalty_sees_prompt_and_answer():
    model = model_of("qwen3")
    request = requests_of(12, samples=1)[0]
    ids = torch.from_numpy(request.prompt)[None]
    config = hf.GenerationConfig(max_new_tokens=12, do_sample=False, pad_token_id=0, repetition_penalty=1.7)
    want = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)[0, 12:].tolist()
    assert tokens(decode(policy_of(model), [request], temperature=0.0, repetition_penalty=1.7)) == [[want]]
    assert want != generated(model, request.prompt, 12)


def test_adapters_take_part_and_everything_is_left_as_it_was():
    base = model_of("qwen3", initializer_range=0.1)
    requests = requests_of(*MIXED)
    head = policy_of(base).head
    plain = tokens(decode(PolicyModel(base, layout="tree", head=head), requests, temperature=0.0))
    adapted = get_peft_model(base, LoraConfig(r=4, lora_dropout=0.5, target_modules=["q_proj", "o_proj", "down_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(0))
    base.set_attn_implementation(backends.register())
    adapted.train()
    base.model.layers[0].eval()
    before = torch.get_rng_state()
    with torch.autocast("cpu", enabled=False, cache_enabled=False):  # as Lightning's
        got = tokens(decode(PolicyModel(adapted, layout="tree", head=head), requests, temperature=0.0))
        assert not torch.is_autocast_cache_enabled()
    assert torch.equal(before, torch.get_rng_state())
    assert base.config._attn_implementation == backends.NAME
    assert adapted.training
    assert not base.model.layers[0].training
    base.set_attn_implementation("eager")
    assert got != plain
    assert got == [[generated(adapted.eval(), request.prompt, 12)] * 2 for request in requests]


def test_everything_is_put_back_after_an_error():
    model = model_of("qwen3").train()
    with pytest.raises(IndexError):
        decode(policy_of(model), [Request(np.array([10_000]), 1, 0)])
    assert model.training
    assert model.config._attn_implementation == "eager"
    model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not finite"):
        decode(PolicyModel(model, layout="tree", head=policy_of(model_of("qwen3")).head), requests_of(4))


@pytest.mark.parametrize("autocast", [False, True])
def test_sixteen_bits_stay_close(autocast):
    model = model_of("qwen3", initializer_range=0.1)
    policy, requests = policy_of(model), requests_of(*MIXED)
    if not autocast:
        model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        answers = decode(policy, requests)
        (policy.causal_lm(input_ids=torch.tensor([[3, 4]])).logits.float().sum()).backward()
    assert model.model.layers[0].self_attn.q_proj.weight.grad is not None, "no cast of the decoder's is left for training to use"
    model.float()
    for request, group in zip(requests, answers, strict=True):
        for answer, want in zip(group, trainer_logps(policy, request, group, 1.0), strict=True):
            assert np.abs(answer.logps - want).max() < 0.2


def test_stop_strings_end_answers_where_their_text_is_complete():
    tokenizer = byte_tokenizer()
    policy = policy_of(model_of("qwen3", vocab_size=len(tokenizer), initializer_range=0.02))
    strings = ("ab", "z", "\u00e9")
    stops = Stops([], strings, tokenizer)
    free = decode(policy, requests_of(6, samples=60), max_new_tokens=60)[0]
    group = decode(policy, requests_of(6, samples=60), max_new_tokens=60, stops=stops)[0]
    assert {answer.finish for answer in group} == {"stop", "length"}
    for answer, whole in zip(group, free, strict=True):
        text = tokenizer.decode(answer.tokens.tolist())
        assert any(s in text for s in strings) == (answer.finish == "stop")
        assert not any(s in tokenizer.decode(answer.tokens[:-1].tolist()) for s in strings)
        assert answer.tokens.tolist() == whole.tokens[: len(answer.tokens)].tolist()


def test_a_stop_string_over_several_tokens():
    tokenizer = byte_tokenizer()
    stops = Stops([], ("\u00e9!", "</a>"), tokenizer)
    for text, want in (("x\u00e9!", True), ("x\u00e9", False), ("!", False), ("<b></a>", True), ("</a", False)):
        ids = np.array([tokenizer(text)["input_ids"]], np.int32)
        count = np.array([ids.shape[1]])
        assert stops.reached(ids[:, -1].astype(np.int64), ids, np.array([0]), count)[0] == want


def test_families_that_it_cannot_serve_fall_back_and_say_so_once(caplog):
    policy, generator = bloom(), NativeGenerator(max_new_tokens=5, temperature=0.0)
    with caplog.at_level(logging.WARNING):
        generator.attach(policy, byte_tokenizer())
        answers = [generator.generate(requests_of(6, 3)) for _ in range(2)]
    said = [record.message for record in caplog.records if record.name.startswith("posttrain.rollout")]
    assert len(said) == 1
    assert "rollout=native cannot serve this model (bloom" in said[0]
    assert tokens(answers[0]) == tokens(answers[1])
    assert tokens(answers[0])[0][0] == generated(policy.model, requests_of(6, 3)[0].prompt, 5)


def bloom() -> PolicyModel:
    """A tiny bloom, whose attention has a position bias."""
    torch.manual_seed(0)
    config = hf.BloomConfig(vocab_size=300, hidden_size=64, n_layer=2, n_head=4, initializer_range=0.3)
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    model.generation_config = hf.GenerationConfig()
    return PolicyModel(model, layout="padded", head=policy_of(model).head)


def test_the_probe_notices_what_is_missing(monkeypatch):
    from posttrain.rollout.serves import serves

    right = attention.attend_cohort
    assert serves(model_of("gemma2")) is None
    assert serves(model_of("gpt_oss")) is None
    for family, missing in (("gemma2", {"softcap": None}), ("gemma3", {"window": None}), ("gpt_oss", {"sinks": None})):
        monkeypatch.setattr(attention, "attend_cohort", lambda c, p, q, s, r, missing=missing: right(c, p, q, replace(s, **missing), r))
        assert "relative error" in (serves(model_of(family)) or ""), family


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "mistral", "deepseek_v3", "gpt_oss"])
def test_steps_of_fixed_shapes_draw_the_same(family):
    """What a CUDA graph replays, run on the CPU: windows that leave prompts behind, answers that end at different times, a queue."""
    policy, requests = policy_of(model_of(family)), requests_of(3, 9, 23, 1, 14, samples=3)
    sampling = dict(temperature=2.0, stops=list(range(3, 7)), cache_tokens=600, max_new_tokens=80)
    usual, fixed = (decode(policy, requests, fixed=fixed, **sampling) for fixed in (False, True))
    assert tokens(fixed) == tokens(usual)
    assert len({len(answer.tokens) for answer in chain(*usual)}) > 5
    for one, other in zip(chain(*fixed), chain(*usual), strict=True):
        np.testing.assert_allclose(one.logps, other.logps, atol=1e-4)


def test_steps_of_fixed_shapes_see_what_occurred():
    policy, requests = policy_of(model_of("qwen3")), requests_of(9, 5)
    usual, fixed = (
        decode(policy, requests, max_new_tokens=40, repetition_penalty=1.5, stops=[7, 8, 9], fixed=fixed) for fixed in (False, True)
    )
    assert tokens(fixed) == tokens(usual)


def test_like_lengths_share_a_cohort():
    assert alike([100, 90, 71, 69, 50, 30, 10, 9]) == [slice(0, 5), slice(5, 7), slice(7, 8)]
    assert alike([5]) == [slice(0, 1)]


def test_values_that_mean_nothing_are_refused():
    for wrong in (
        {"top_p": 0.0},
        {"temperature": -1.0},
        {"max_new_tokens": 0},
        {"top_k": 0},
        {"min_p": 2.0},
        {"repetition_penalty": 0.0},
        {"stop": ("",)},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Sampling(**wrong)

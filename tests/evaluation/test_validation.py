"""Validation sums and their summary, by hand and against the model's own logits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import Qwen3ForCausalLM

from posttrain.data.tree import collate, tree_of
from posttrain.errors import DataError
from posttrain.evaluation.scoring import micro_batches, scorer
from posttrain.evaluation.validation import likelihood_of, validate
from posttrain.functional.supervised import likelihood_metrics
from posttrain.models.attention import backends
from posttrain.types import StepShare, TokenizedExample, TokenStats, TokenTree


def example(length: int, weights: list[float] | None = None, seed: int = 0) -> TokenizedExample:
    ids = np.random.default_rng(seed).integers(0, 250, length)
    return tree_of([(ids, np.array(weights if weights is not None else [1.0] * length))])


def test_metrics_by_hand() -> None:
    got = likelihood_metrics({"sum_nll": 6.0, "sum_weight": 4.0, "sum_correct": 1.0})
    assert got == {"loss": 1.5, "perplexity": math.exp(1.5), "token_accuracy": 0.25}
    assert likelihood_metrics({"sum_nll": 4000.0, "sum_weight": 1.0, "sum_correct": 0.0})["perplexity"] == math.inf


def test_no_target_is_an_error() -> None:
    with pytest.raises(DataError, match="target"):
        likelihood_metrics({"sum_nll": 0.0, "sum_weight": 0.0, "sum_correct": 0.0})


def test_sums_are_weighted_and_float64() -> None:
    tree = collate([example(4, [0.0, 1.0, 0.5, 2.0])], StepShare(3.5, 1, 1))

    def score(tree: TokenTree) -> TokenStats:
        assert not torch.is_grad_enabled()
        return TokenStats(torch.tensor([-1.0, -2.0, -(2.0**24) - 1]), correct=torch.tensor([True, False, True]))

    sums = validate(likelihood_of(score), [tree, tree])
    assert sums == {"sum_nll": 2 * (1.0 + 1.0 + 2 * 2.0**24), "sum_weight": 7.0, "sum_correct": 6.0}


def test_a_score_without_accuracy_is_refused() -> None:
    tree = collate([example(4)], StepShare(3.0, 1, 1))
    with pytest.raises(ValueError, match="correct"):
        validate(likelihood_of(lambda tree: TokenStats(-tree.weight)), [tree])


@pytest.mark.parametrize("max_tokens", [1, 25, 1000])
def test_equals_the_models_own_logits(random_model: Qwen3ForCausalLM, max_tokens: int) -> None:
    examples = [example(length, seed=length) for length in (9, 14, 6)]
    random_model.train()
    with scorer(random_model) as score:
        got = likelihood_metrics(validate(likelihood_of(score), micro_batches(examples, max_tokens=max_tokens)))
    assert random_model.training
    assert random_model.config._attn_implementation == "sdpa"
    losses, hits = [], []
    random_model.eval()
    for one in examples:
        ids = torch.from_numpy(one.ids.astype(np.int64))
        logits = random_model(input_ids=ids[None]).logits[0, :-1]
        losses += cross_entropy(logits, ids[1:], reduction="none").tolist()
        hits += (logits.argmax(-1) == ids[1:]).tolist()
    assert got["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert got["token_accuracy"] == pytest.approx(np.mean(hits))


def test_scorer_restores_a_training_attention(random_model: Qwen3ForCausalLM) -> None:
    random_model.set_attn_implementation(backends.register())
    name = random_model.config._attn_implementation
    with pytest.raises(RuntimeError, match="stop"), scorer(random_model):
        raise RuntimeError("stop")
    assert random_model.config._attn_implementation == name

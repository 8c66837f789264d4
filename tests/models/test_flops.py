"""Counted operations beside hand-worked ones, and beside what torch counts of the real computation of an optimizer step."""

import json
import math

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from posttrain.data.tree import answered
from posttrain.data.work import attended_by
from posttrain.functional.attended import attended
from posttrain.functional.logprobs import computed_again
from posttrain.models.artifact import ArtifactRecord, save_artifact
from posttrain.models.flops import FlopModel
from posttrain.models.heads import make
from posttrain.models.loading import build_model
from posttrain.models.reward_artifact import save_reward_artifact
from posttrain.models.tokenizers import load_tokenizer
from posttrain.models.vocabulary import fit_to_tokenizer
from posttrain.rollout.measures import sampling_work
from posttrain.runs import session
from posttrain.runs.callbacks.record import StepRecorder
from posttrain.runs.compose import compose
from posttrain.runs.job import run_job
from posttrain.types import Work

BASE = (
    "model=nano", "data=arithmetic", "evaluation=none", "tracking=none", "hardware=cpu", "limit=60", "global_batch=12", "max_steps=1",
    "validate.every_steps=null", "validate.at_start=false", "validate.at_end=false", "data.generator.held_out=4",
)  # fmt: skip
PAIRS = ("method=dpo", "data=arithmetic_pairs")
LORA = ("model/peft=lora", "model.peft.dropout=0.0")
SAMPLED = ("method=grpo", "rollout.max_new_tokens=24", "rollout.group_size=4", "global_batch=6", "reward=[length]")
LARGER = (
    "model.architecture.hidden_size=192", "model.architecture.intermediate_size=320", "model.architecture.num_hidden_layers=2",
    "model.architecture.num_attention_heads=6", "model.architecture.num_key_value_heads=3", "model.architecture.vocab_size=4096",
    "model.architecture.tie_word_embeddings=false",
)  # fmt: skip
CASES = {
    "sft": ("method=sft",),
    "sft, larger": ("method=sft", *LARGER),
    "sft, checkpointing": ("method=sft", "model.gradient_checkpointing=true"),
    "dpo": PAIRS,
    "dpo, adapters off": (*PAIRS, *LORA),
    "dpo, cached": (*PAIRS, "method.reference=cached"),
    "reward model": ("method=reward_model", "data=arithmetic_pairs"),
    "grpo, larger, pulled": (*SAMPLED, *LARGER, "method.kl.coef=0.1"),
    "grpo, two steps a rollout": (*SAMPLED, "method.minibatches=2", "max_steps=2", "method.kl.coef=0.1", "method.kl.place=reward"),
}


def product(total, left, right, **_):
    return 2 * left[0] * left[1] * right[1]


def packed_product(x, weight, *_, out_shape, **__):
    return 2 * math.prod(x) * out_shape[-1]


def attention(query, key, value, *_, **__):
    return sdpa_flop_count(query, key, value)


NOT_COUNTED_BY_TORCH = {
    torch.ops.aten.addmm_: product,
    torch.ops.mkldnn._linear_pointwise: packed_product,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention,
}


@pytest.fixture(scope="module")
def judges(tmp_path_factory):
    """Overrides by case: a reward that is a model of another shape than the policy."""
    config = {**compose(["model=nano", *LARGER])["model"]}
    tokenizer, root = load_tokenizer(config), tmp_path_factory.mktemp("judges")
    model = build_model(config, dtype=torch.float32, seed=2)
    fit_to_tokenizer(model, tokenizer, random_weights=True)
    record = ArtifactRecord(method="sft", parent=None, data={}, config_hash="x", metrics={}, versions={})
    scalar = save_reward_artifact(model, make("scalar", model.config.hidden_size, (), {}), tokenizer, root / "scalar", record=record)
    local = save_artifact(model, tokenizer, root / "local", record=record)
    judge = ("reward/backend=local", "reward.judge.backend.dtype=float32", "reward.judge.backend.max_new_tokens=6")
    return {
        "grpo, reward model": ("reward=[reward_model]", f"reward.reward_model.path={scalar}"),
        "grpo, local judge": ("reward=[judge]", *judge, f"reward.judge.backend.path={local}"),
    }


JUDGED = ("grpo, reward model", "grpo, local judge")


@pytest.mark.parametrize("case", [*CASES, *JUDGED])
def test_a_run_counts_what_it_computes(case, tmp_path, monkeypatch, request):
    lines = CASES[case] if case in CASES else (*SAMPLED, *request.getfixturevalue("judges")[case])
    counter = FlopCounterMode(display=False, custom_mapping=NOT_COUNTED_BY_TORCH)
    begin, end = StepRecorder.on_train_start, session.Session._finish
    monkeypatch.setattr(StepRecorder, "on_train_start", lambda *given: (begin(*given), counter.__enter__()))
    monkeypatch.setattr(session.Session, "_finish", lambda *given: (counter.__exit__(None, None, None), end(*given)))
    cache = [f"method.reference_cache={tmp_path}/cache"] if "cached" in case else []
    assert run_job(compose([*BASE, *lines, *cache, f"output_dir={tmp_path}/run"])) == 0
    found = json.loads((tmp_path / "run" / "result.json").read_text())["flops"]
    if cache:  # what was computed before training is charged too
        found -= sum(json.loads(path.read_text())["flops"] for path in (tmp_path / "cache").glob("*/*.json") if "flops" in path.read_text())
    assert found == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_attention_is_counted_in_blocks_of_queries():
    assert [attended(5, 0), attended(5, 7), attended(128, 0)] == [25, 60, 128 * 128]
    assert attended(300, 10) == 128 * (10 + 128) + 128 * (10 + 256) + 44 * (10 + 300)
    # a prompt of 3 with answers of 2 and 4: 3 x 3, 2 x 5, 4 x 7
    assert attended_by(answered(np.arange(3), [np.arange(2), np.arange(4)], {})) == 9 + 10 + 28


def test_an_answer_is_read_but_for_its_last_token():
    found = sampling_work(3, [1, 4])
    assert (found.forward_tokens, found.forward_targets, found.generated) == (3 + 0 + 3, 1 + 0 + 3, 5)
    assert found.forward_pairs == 9 + (4 + 5 + 6)


def test_the_head_is_computed_again_as_far_as_logits_were_not_kept():
    assert computed_again(1000, 264, "cpu") == 0
    vocabulary, targets = 262144, 100  # 26 M logits, of which 16.8 M fit; blocks of 41,728 entries
    assert computed_again(targets, vocabulary, "cpu") == targets * 3 * 41728


def test_operations_of_a_step_by_hand():
    model = FlopModel(weights=10.0, trained=4.0, head=6.0, attention=2.0, vocabulary=3)
    assert model.forward(tokens=5, targets=2, pairs=7) == 2 * 10 * 5 + 2 * 6 * 2 + 2 * 7
    assert model.training(tokens=5, targets=2, pairs=7, again=3) == 5 * (40 + 8) + 6 * 6 * 2 + 6 * 7 + 2 * 2 * 3
    work = Work(tokens=5, computed=5, targets=2, pairs=7, batches=(2,), forward_tokens=1, beside=100.0)
    trained, forward = 5 * 48 + 72 + 42, 100 + 24 + 14
    assert model.of(work, passes=1) == trained + forward + 20 + 100
    assert model.of(work, heads=False) == trained - 72 + 20 + 100

"""Commands that prepare data, in one process each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from posttrain.errors import ConfigError
from posttrain.runs.check import compose_and_check
from posttrain.runs.commands.arguments import key_values
from posttrain.runs.commands.plan import model_rows
from posttrain.runs.commands.table import Call


def test_plan_counts_parameters_steps_and_tokens(posttrain: Callable[..., Any]) -> None:
    outcome = posttrain("plan", "data.generator.train=512", "data.generator.held_out=8", "hardware=4xa100", "epochs=2")
    assert outcome.code == 0, outcome
    for words in ("1,018,240 (100 %)", "runs here", "no", "4 CUDA devices", "tokens a step", "seed: 0"):
        assert words in outcome.out
    assert "steps" in outcome.out
    assert "16" in outcome.out  # 512 examples, two epochs, batches of 64


def test_plan_needs_no_data_of_the_hub(posttrain: Callable[..., Any]) -> None:
    outcome = posttrain("plan", "data=gsm8k", "model=nano", "max_steps=7", "max_length=100")
    assert outcome.code == 0, outcome
    assert "at most 6,400" in outcome.out


NANO = 1_018_240
PEFT = 4 * 16 * (2 * (128 + 128) + 2 * (128 + 64) + 3 * (128 + 512))  # rank 16 on every linear layer of the four
REFERENCES = [
    (["method=dpo"], NANO),
    (["method=kto", "method.reference=copy"], NANO),
    (["method=dpo", "method.reference=cached"], None),
    (["method=dpo", "model/peft=lora"], None),
    (["method=dpo", "model/peft=lora", "method.reference_update_every=2", "method.reference_update_mix=1.0"], NANO + PEFT),
    (["method=dpo", "model/peft=pissa"], NANO + PEFT),
    (["method=simpo"], None),
]


@pytest.mark.parametrize(("overrides", "frozen"), REFERENCES)
def test_plan_counts_a_frozen_reference(overrides: list[str], frozen: int | None) -> None:
    rows = dict(model_rows(compose_and_check([*overrides, "model=nano"])))
    assert rows.get("frozen reference") == (None if frozen is None else f"{frozen:,} more, a second model")


HEADS = [
    (["method=reward_model"], 128),
    (["method=rating_model", "method.head=quantile", "method.head.quantiles=5"], 5 * 129),
    (["method=process_reward_model"], 2 * 129),
    (["method=reward_model", "method.head=branch", "method.head.width=8", "data.attributes=[a,b]"], None),
]


@pytest.mark.parametrize(("overrides", "weights"), HEADS)
def test_plan_counts_a_reward_head(overrides: list[str], weights: int | None) -> None:
    if weights is None:  # two towers of 128 -> 8 -> 2, a GRU cell 128 -> 8, a tower of 8 -> 8 -> 1
        weights = 2 * (129 * 8 + 9 * 2) + 3 * 8 * (128 + 8 + 2) + 9 * 8 + 9
    rows = dict(model_rows(compose_and_check([*overrides, "model=nano"])))
    assert rows["in the reward head"] == f"{weights:,}"
    assert rows["parameters"] == f"{NANO + weights:,}"
    assert rows["trainable"] == f"{NANO + weights:,} (100 %)"
    adapted = dict(model_rows(compose_and_check([*overrides, "model=nano", "model/peft=lora"])))
    assert adapted["trainable"].startswith(f"{PEFT + weights:,} (")


def test_an_output_head_that_a_reward_model_has_no_use_for_is_not_trained() -> None:
    untied = ["model=nano", "model.architecture.tie_word_embeddings=false"]
    whole, judge = (dict(model_rows(compose_and_check([f"method={method}", *untied]))) for method in ("sft", "reward_model"))
    assert whole["parameters"] == f"{NANO + 264 * 128:,}"
    assert judge["trainable"].startswith(f"{NANO + 128:,} (")


def test_data_shows_tokens(posttrain: Callable[..., Any]) -> None:
    outcome = posttrain("data", "limit=20")
    assert outcome.code == 0, outcome
    assert "arithmetic" in outcome.out


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("run=/x/a/seed=1", "/x/a/seed=1"),
        ("run=/x/method=sft,optimizer.lr=1e-3,seed=2", "/x/method=sft,optimizer.lr=1e-3,seed=2"),
        ("run='/x/a b'", "/x/a b"),
        ("run=1e3", "1e3"),
        ("to=null", None),
        ("against=/x/a,b/seed=1", "/x/a,b/seed=1"),
        ("baseline=method=sft", "method=sft"),
        ("runs=[/x/a/seed=1,/x/b/seed=2]", ["/x/a/seed=1", "/x/b/seed=2"]),
        ("runs=/x/a/seed=1,/x/b/seed=2", ["/x/a/seed=1", "/x/b/seed=2"]),
        ("runs=['/x/a,b/seed=1',/x/c[1,2]/seed=1]", ["/x/a,b/seed=1", "/x/c[1,2]/seed=1"]),
        ("runs=[/x/a,/x/b]", ["/x/a", "/x/b"]),
        ("data=/x/seed=1/rows.jsonl", "/x/seed=1/rows.jsonl"),
        ("limit=100", 100),
        ("tasks=gsm8k,arc", ["gsm8k", "arc"]),
    ],
)
def test_folders_need_no_quotes(line: str, value: Any) -> None:
    (found,) = key_values(Call(arguments=(line,))).values()
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("line", ["runs=[/x/a,/x/b", "samples=[1,2", "/x/a/seed", "+run=/x/a", "a b=/x=1"])
def test_what_is_no_argument_is_told(line: str) -> None:
    with pytest.raises(ConfigError):
        key_values(Call(arguments=(line,)))
